package ops

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/rpc"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/mesh"
)

const (
	maxDetail   = 512 // bytes of a service's sentence
	serviceNATS = "nats"
)

// folder is where a file is on a machine: nothing that a client needs.
var folder = regexp.MustCompile(`(^|[\s'"(])/(?:[^\s/'"():;,]+/)+`)

func problem(code int, format string, args ...any) *api.Problem {
	return &api.Problem{Title: http.StatusText(code), Status: code, Detail: fmt.Sprintf(format, args...)}
}

// invalid is a 422 about one part of the request.
func invalid(location, format string, args ...any) *api.Problem {
	p := problem(http.StatusUnprocessableEntity, format, args...)
	p.Errors = []api.ProblemDetail{{Location: location, Message: p.Detail}}
	return p
}

// problem turns a failed call into what the user may see. Only what services say to their callers about a request
// is passed on: the text of a breakdown may name tables, files or peers, so it goes to the log.
func (o *Operations) problem(ctx context.Context, err error) *api.Problem {
	var known *api.Problem
	if errors.As(err, &known) {
		return known
	}
	p := translate(err)
	switch p.Status {
	case http.StatusBadGateway, http.StatusInternalServerError:
		o.t.CountError("mesh_failed")
		if o.logs.Allow() {
			o.t.Log.ErrorContext(ctx, "an operation failed", "request_id", caller.From(ctx).RequestID, "error", err)
		}
	case http.StatusServiceUnavailable:
		o.t.CountError("mesh_unavailable")
	}
	return p
}

// translate gives the problem of a gRPC status.
func translate(err error) *api.Problem {
	var from *mesh.Error
	switch {
	case errors.As(err, &from):
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return problem(http.StatusServiceUnavailable, "the answer was not waited for: ask again")
	case errors.Is(err, errNoPeer):
		return problem(http.StatusServiceUnavailable, "no instance of the service is configured: name its address to the gateway")
	default:
		return problem(http.StatusInternalServerError, "the gateway failed: its log tells more")
	}
	st, _ := status.FromError(from.Err)
	p := translateStatus(from.Peer, st)
	if p.Status >= http.StatusInternalServerError {
		p.Service = from.Peer.Service
	}
	return p
}

func translateStatus(peer mesh.Peer, st *status.Status) *api.Problem {
	who := peer.Who()
	said := sentence(st.Message())
	switch st.Code() {
	case codes.InvalidArgument, codes.OutOfRange:
		if strings.HasPrefix(said, "page_token") {
			p := problem(http.StatusBadRequest, "the cursor is damaged or of another listing: use next of the page before, and keep the filters")
			p.Errors = []api.ProblemDetail{{Location: "query.cursor", Message: p.Detail}}
			return p
		}
		return problem(http.StatusUnprocessableEntity, "%s", said)
	case codes.NotFound:
		return problem(http.StatusNotFound, "%s", said)
	case codes.AlreadyExists:
		return problem(http.StatusConflict, "%s", said)
	case codes.FailedPrecondition:
		reason, detail := splitReason(said)
		p := problem(http.StatusUnprocessableEntity, "%s", detail)
		p.Reason = reason
		return p
	case codes.Aborted:
		return problem(http.StatusPreconditionFailed, "somebody else has changed it meanwhile: read it again")
	case codes.ResourceExhausted:
		if peer.Service == serviceEnforce || peer.Service == serviceIngest { // their limits; others run out of memory or of message size
			return problem(http.StatusTooManyRequests, "%s", said)
		}
		return problem(http.StatusServiceUnavailable, "%s is overloaded, or the answer is too large: ask for less", who)
	case codes.Unavailable:
		// Of the transport's reasons only this one asks for the operator.
		if said := sentence(rpc.Sentence(st.Err())); strings.Contains(said, "certificate") {
			return problem(http.StatusServiceUnavailable, "%s does not answer: %s", who, folder.ReplaceAllString(said, "$1"))
		}
		if peer.Service == servicePersist {
			return problem(http.StatusServiceUnavailable, "%s does not answer, or its database does not", who)
		}
		return problem(http.StatusServiceUnavailable, "%s does not answer", who)
	case codes.DeadlineExceeded:
		if peer.Service == servicePersist {
			return problem(http.StatusServiceUnavailable, "%s does not answer in time: a shorter time range is faster", who)
		}
		return problem(http.StatusServiceUnavailable, "%s does not answer in time", who)
	case codes.Canceled:
		return problem(http.StatusServiceUnavailable, "the answer of %s was not waited for: ask again", who)
	case codes.PermissionDenied, codes.Unauthenticated:
		return problem(http.StatusBadGateway, "%s refuses the gateway: check the gateway's certificate", who)
	case codes.Unimplemented:
		return problem(http.StatusBadGateway, "%s cannot do this: it is of an older version, or another service is at that address", who)
	}
	return problem(http.StatusBadGateway, "%s failed: its log and the gateway's tell more", who)
}

// sentence is a service's message, in one line and bounded.
func sentence(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > maxDetail {
		s = strings.ToValidUTF8(s[:maxDetail], "") + "…"
	}
	return s
}

// splitReason takes the machine-readable word from "never_block: 192.0.2.1 is …".
func splitReason(s string) (reason, detail string) {
	word, rest, ok := strings.Cut(s, ": ")
	if !ok || word == "" || strings.Trim(word, "abcdefghijklmnopqrstuvwxyz_") != "" {
		return "", s
	}
	return word, rest
}

// silent reports that a call may or may not have been carried out.
func silent(err error) bool {
	var from *mesh.Error
	if !errors.As(err, &from) {
		return false
	}
	switch status.Code(from.Err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return false
}

func notFound(err error) bool {
	var from *mesh.Error
	return errors.As(err, &from) && status.Code(from.Err) == codes.NotFound
}

// natsProblem is the answer when something needs NATS and it is away.
func (o *Operations) natsProblem(ctx context.Context, op string, err error, detail string) *api.Problem {
	o.t.CountError(op)
	if o.logs.Allow() {
		o.t.Log.ErrorContext(ctx, "NATS is needed", "op", op, "request_id", caller.From(ctx).RequestID, "error", err)
	}
	p := problem(http.StatusServiceUnavailable, "%s", detail)
	p.Service = serviceNATS
	return p
}
