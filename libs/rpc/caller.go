package rpc

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	ingestv1 "github.com/tidegate-mesh/tidegate/proto/ingest/v1"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
)

// anyone in a list of callers is every peer whose certificate the authority has signed.
const anyone = "*"

var (
	everyone = []string{anyone}
	users    = []string{pki.Gateway, pki.Tidegate} // those that act for a person
)

// callers says which identity may call a method. A method that is not here may be called by nobody.
var callers = map[string][]string{
	healthv1.Health_Check_FullMethodName: everyone,
	healthv1.Health_List_FullMethodName:  everyone,
	healthv1.Health_Watch_FullMethodName: everyone,

	ingestv1.IngestService_Status_FullMethodName:  everyone,
	ingestv1.IngestService_Capture_FullMethodName: users,

	classifyv1.ClassifyService_Stream_FullMethodName:      {pki.Ingest},
	classifyv1.ClassifyService_Status_FullMethodName:      everyone,
	classifyv1.ClassifyService_ListGroups_FullMethodName:  users,
	classifyv1.ClassifyService_DomainLists_FullMethodName: users,

	enforcev1.EnforceService_Status_FullMethodName:       everyone,
	enforcev1.EnforceService_ListRules_FullMethodName:    users,
	enforcev1.EnforceService_AddRule_FullMethodName:      users,
	enforcev1.EnforceService_RevokeRule_FullMethodName:   users,
	enforcev1.EnforceService_ExplainRule_FullMethodName:  users,
	enforcev1.EnforceService_AddressLists_FullMethodName: users,
	enforcev1.EnforceService_Panic_FullMethodName:        users,

	queryv1.QueryService_Status_FullMethodName:           everyone,
	queryv1.QueryService_ListFlows_FullMethodName:        users,
	queryv1.QueryService_ListAttacks_FullMethodName:      users,
	queryv1.QueryService_ListVerdicts_FullMethodName:     users,
	queryv1.QueryService_ListEnforcements_FullMethodName: users,
	queryv1.QueryService_ListAudit_FullMethodName:        users,
	queryv1.QueryService_Top_FullMethodName:              users,
	queryv1.QueryService_TimeSeries_FullMethodName:       users,
	queryv1.QueryService_CountMatching_FullMethodName:    users,
}

// authorize is nil when the peer of ctx may call method; otherwise a status that names both.
func authorize(ctx context.Context, method string) error {
	name := callerName(ctx)
	if name == "" {
		return status.Errorf(codes.PermissionDenied, "a peer without a verified certificate may not call %s", method)
	}
	if allowed := callers[method]; slices.Contains(allowed, name) || slices.Contains(allowed, anyone) {
		return nil
	}
	return status.Errorf(codes.PermissionDenied, "%s may not call %s", name, method)
}

// callerName is the common name of the peer's verified certificate; empty when there is none.
func callerName(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return ""
	}
	return info.State.VerifiedChains[0][0].Subject.CommonName
}

// denied is the error counter's op of a refused call.
const denied = "grpc_denied"

func authorizeUnary(t *telemetry.Telemetry) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if err := authorize(ctx, info.FullMethod); err != nil {
			t.CountError(denied)
			return nil, err
		}
		return next(ctx, req)
	}
}

func authorizeStream(t *telemetry.Telemetry) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		if err := authorize(stream.Context(), info.FullMethod); err != nil {
			t.CountError(denied)
			return err
		}
		return next(srv, stream)
	}
}
