package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/libs/config"
	"github.com/tidegate-mesh/tidegate/libs/ledger"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/rpc"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	ingestv1 "github.com/tidegate-mesh/tidegate/proto/ingest/v1"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
	statusv1 "github.com/tidegate-mesh/tidegate/proto/status/v1"
)

// remote is how the read and write commands reach the services: one address for the all-in-one, one each
// where the services run apart.
type remote struct {
	Addr         string  `help:"gRPC address of the all-in-one, and of every service not named apart" default:"127.0.0.1:50051" env:"TIDEGATE_ADDR"`
	IngestAddr   string  `help:"gRPC address of ingest" env:"TIDEGATE_INGEST_ADDR"`
	ClassifyAddr string  `help:"gRPC address of classify" env:"TIDEGATE_CLASSIFY_ADDR"`
	EnforceAddr  string  `help:"gRPC address of enforce" env:"TIDEGATE_ENFORCE_ADDR"`
	PersistAddr  string  `help:"gRPC address of persist" env:"TIDEGATE_PERSIST_ADDR"`
	TLS          rpc.TLS `embed:""`
	JSON         bool    `help:"print one JSON object a line instead of a table"`
}

const callTimeout = 10 * time.Second

// call dials addr (or the common address), runs f and turns gRPC's errors into sentences.
func (r *remote) call(addr, service string, f func(ctx context.Context, c *grpc.ClientConn) error) error {
	if addr == "" {
		addr = r.Addr
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	files, err := operatorCerts(r.TLS)
	if err != nil {
		return config.Usagef("%w", err)
	}
	conn, err := rpc.Dial(telemetry.Discard("tidegate"), addr, files)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	err = f(ctx, conn)
	if err == nil {
		return nil
	}
	s, _ := status.FromError(err)
	switch s.Code() {
	case codes.Unavailable:
		return fmt.Errorf("%s does not answer at %s: start it (tidegate run), or name its address with --addr or --%s-addr: %s", service, addr, service, s.Message())
	case codes.Unimplemented:
		return fmt.Errorf("no %s at %s: name its address with --%s-addr", service, addr, service)
	case codes.Unknown:
		return err
	}
	return errors.New(s.Message())
}

func (r *remote) query(f func(ctx context.Context, c queryv1.QueryServiceClient) error) error {
	return r.call(r.PersistAddr, "persist", func(ctx context.Context, c *grpc.ClientConn) error { return f(ctx, queryv1.NewQueryServiceClient(c)) })
}

func (r *remote) enforce(f func(ctx context.Context, c enforcev1.EnforceServiceClient) error) error {
	return r.call(r.EnforceAddr, "enforce", func(ctx context.Context, c *grpc.ClientConn) error {
		return f(ctx, enforcev1.NewEnforceServiceClient(c))
	})
}

// table prints rows with aligned columns.
func table(w io.Writer, head string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 2, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, strings.ReplaceAll(head, " ", "\t"))
	for _, r := range rows {
		_, _ = fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	return t.Flush()
}

type attacksCmd struct {
	remote `embed:""`
	Active bool          `help:"only attacks that go on"`
	Type   string        `help:"only this type, for example syn_flood"`
	Since  time.Duration `help:"how far back" default:"24h"`
	Limit  uint32        `help:"at most so many" default:"100"`
}

func (c *attacksCmd) Run() error {
	return c.query(func(ctx context.Context, q queryv1.QueryServiceClient) error {
		resp, err := q.ListAttacks(ctx, &queryv1.ListAttacksRequest{Type: c.Type, ActiveOnly: c.Active, Limit: c.Limit, Range: since(c.Since)})
		if err != nil {
			return err
		}
		var rows [][]string
		for _, a := range resp.Attacks {
			o := newAttackObject(a)
			if c.JSON {
				if err := printJSON(os.Stdout, o); err != nil {
					return err
				}
				continue
			}
			rows = append(rows, []string{o.ID, o.Type, o.Target, o.State, clock(o.FirstNs), fmt.Sprintf("%d ms", (o.DetectedNs-o.FirstNs)/1e6), quantity(o.PPS), strconv.FormatUint(o.Sources, 10)})
		}
		if c.JSON {
			return nil
		}
		return table(os.Stdout, "ID TYPE TARGET STATE FIRST DETECTED PPS SOURCES", rows)
	})
}

type flowsCmd struct {
	remote `embed:""`
	Prefix string        `help:"only flows with an end inside this prefix"`
	App    string        `help:"only this application"`
	Host   string        `help:"only this host name"`
	Port   uint32        `help:"only this port, either side"`
	Since  time.Duration `help:"how far back" default:"1h"`
	Limit  uint32        `help:"at most so many" default:"100"`
}

func (c *flowsCmd) Run() error {
	return c.query(func(ctx context.Context, q queryv1.QueryServiceClient) error {
		resp, err := q.ListFlows(ctx, &queryv1.ListFlowsRequest{Prefix: c.Prefix, App: c.App, Host: c.Host, Port: c.Port, Limit: c.Limit, Range: since(c.Since)})
		if err != nil {
			return err
		}
		var rows [][]string
		for _, f := range resp.Flows {
			o := newFlowObject(f, "")
			if c.JSON {
				if err := printJSON(os.Stdout, o); err != nil {
					return err
				}
				continue
			}
			rows = append(rows, []string{clock(o.FirstNs), addrPort(o.SrcIP, o.SrcPort), addrPort(o.DstIP, o.DstPort), o.Transport, o.App, orDash(o.Host), strconv.FormatUint(o.Packets, 10), quantity(float64(o.Bytes))})
		}
		if c.JSON {
			return nil
		}
		return table(os.Stdout, "FIRST SOURCE DESTINATION PROTO APP HOST PACKETS BYTES", rows)
	})
}

type topCmd struct {
	remote `embed:""`
	By     string        `help:"src, dst, app, host or port" enum:"src,dst,app,host,port" default:"app"`
	Since  time.Duration `help:"how far back" default:"1h"`
	Limit  uint32        `help:"at most so many" default:"10"`
}

func (c *topCmd) Run() error {
	return c.query(func(ctx context.Context, q queryv1.QueryServiceClient) error {
		resp, err := q.Top(ctx, &queryv1.TopRequest{By: c.By, Limit: c.Limit, Range: since(c.Since)})
		if err != nil {
			return err
		}
		var rows [][]string
		for _, r := range resp.Rows {
			if c.JSON {
				if err := printJSON(os.Stdout, map[string]any{c.By: r.Key, "flows": r.Flows, "packets": r.Packets, "bytes": r.Bytes}); err != nil {
					return err
				}
				continue
			}
			rows = append(rows, []string{orDash(r.Key), quantity(float64(r.Flows)), quantity(float64(r.Packets)), quantity(float64(r.Bytes))})
		}
		if c.JSON {
			return nil
		}
		return table(os.Stdout, strings.ToUpper(c.By)+" FLOWS PACKETS BYTES", rows)
	})
}

type rulesCmd struct {
	List    rulesListCmd    `cmd:"" help:"list the rules and what they hit"`
	Add     rulesAddCmd     `cmd:"" help:"add a rule"`
	Revoke  rulesRevokeCmd  `cmd:"" help:"take a rule away"`
	Explain rulesExplainCmd `cmd:"" help:"say why a rule is there and what it does"`
}

type rulesListCmd struct {
	remote `embed:""`
}

func (c *rulesListCmd) Run() error {
	return c.enforce(func(ctx context.Context, e enforcev1.EnforceServiceClient) error {
		resp, err := e.ListRules(ctx, &enforcev1.ListRulesRequest{})
		if err != nil {
			return err
		}
		var rows [][]string
		for _, s := range resp.Rules {
			o := newRuleObject(s)
			if c.JSON {
				if err := printJSON(os.Stdout, o); err != nil {
					return err
				}
				continue
			}
			rows = append(rows, []string{o.ID, o.Action, o.State, o.Match, quantity(float64(o.Packets)), clock(o.ExpiresNs), o.Origin})
		}
		if c.JSON {
			return nil
		}
		return table(os.Stdout, "ID ACTION STATE MATCH PACKETS EXPIRES ORIGIN", rows)
	})
}

type rulesAddCmd struct {
	remote   `embed:""`
	Action   string        `help:"allow, drop, rate-limit or count" enum:"allow,drop,rate-limit,count" required:""`
	Src      string        `help:"source prefix"`
	Dst      string        `help:"destination prefix"`
	Proto    string        `help:"tcp, udp, icmp, icmpv6, sctp, gre or a number"`
	Sport    *uint16       `help:"source port"`
	Dport    *uint16       `help:"destination port"`
	TCPFlags string        `help:"flags that must be set, of FSRPAUEC; with a mask: S/SA" name:"tcp-flags"`
	Length   string        `help:"IP length, or a range: 60-100"`
	TTL      string        `help:"TTL, or a range: 40-64" name:"ttl"`
	PPS      uint64        `help:"packets a second, for rate-limit" name:"pps"`
	BPS      uint64        `help:"bits a second, for rate-limit" name:"bps"`
	For      time.Duration `help:"how long; 0 = until revoked" default:"1h"`
	Priority int32         `help:"higher wins among equally specific rules"`
	Comment  string        `help:"why"`
}

// rule builds the rule that the flags describe.
func (c *rulesAddCmd) rule(now time.Time) (policy.Rule, error) {
	r := policy.Rule{Origin: policy.OriginUser, Comment: c.Comment, Priority: c.Priority, RatePPS: c.PPS, RateBPS: c.BPS, Created: now}
	var err error
	if r.Action, err = policy.ParseAction(c.Action); err != nil {
		return r, err
	}
	if c.Src != "" {
		if r.Match.Src, err = policy.ParsePrefix(c.Src); err != nil {
			return r, fmt.Errorf("--src: %w", err)
		}
	}
	if c.Dst != "" {
		if r.Match.Dst, err = policy.ParsePrefix(c.Dst); err != nil {
			return r, fmt.Errorf("--dst: %w", err)
		}
	}
	if r.Match.Protocol, r.Match.HasProtocol, err = parseProtocol(c.Proto); err != nil {
		return r, err
	}
	if c.Sport != nil {
		r.Match.SrcPort, r.Match.HasSrcPort = *c.Sport, true
	}
	if c.Dport != nil {
		r.Match.DstPort, r.Match.HasDstPort = *c.Dport, true
	}
	if c.TCPFlags != "" {
		if r.Match.TCPFlags, r.Match.TCPFlagsMask, err = policy.ParseFlags(c.TCPFlags); err != nil {
			return r, fmt.Errorf("--tcp-flags: %w", err)
		}
	}
	low, high, err := parseRange("--length", c.Length, 65535)
	if err != nil {
		return r, err
	}
	r.Match.LengthMin, r.Match.LengthMax = uint16(low), uint16(high)
	if low, high, err = parseRange("--ttl", c.TTL, 255); err != nil {
		return r, err
	}
	r.Match.TTLMin, r.Match.TTLMax = uint8(low), uint8(high)
	if c.For > 0 {
		r.Expires = now.Add(c.For)
	}
	r.ID = policy.DerivedID(policy.OriginUser, r.Action.String(), r.Match.String())
	return r, r.Validate()
}

func parseRange(flag, s string, limit uint64) (low, high uint64, err error) {
	if s == "" {
		return 0, 0, nil
	}
	a, b, isRange := strings.Cut(s, "-")
	if !isRange {
		b = a
	}
	low, err1 := strconv.ParseUint(a, 10, 32)
	high, err2 := strconv.ParseUint(b, 10, 32)
	if err1 != nil || err2 != nil || low > high || high > limit || high == 0 {
		return 0, 0, fmt.Errorf("%s %q: give a number or a range LOW-HIGH of at most %d", flag, s, limit)
	}
	return low, high, nil
}

func (c *rulesAddCmd) Run() error {
	r, err := c.rule(time.Now())
	if err != nil {
		return config.Usagef("%w", err)
	}
	return c.enforce(func(ctx context.Context, e enforcev1.EnforceServiceClient) error {
		resp, err := e.AddRule(ctx, &enforcev1.AddRuleRequest{Rule: policy.ToProto(&r)})
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(os.Stdout, newRuleObject(&enforcev1.RuleState{Rule: resp.Rule, State: "active"}))
		}
		fmt.Printf("rule %s: %s %s\n", resp.Rule.Id, r.Action, r.Match.String())
		return nil
	})
}

type rulesRevokeCmd struct {
	remote `embed:""`
	ID     string `arg:"" help:"the rule's id (tidegate rules list)"`
}

func (c *rulesRevokeCmd) Run() error {
	return c.enforce(func(ctx context.Context, e enforcev1.EnforceServiceClient) error {
		if _, err := e.RevokeRule(ctx, &enforcev1.RevokeRuleRequest{Id: c.ID}); err != nil {
			return err
		}
		if c.JSON {
			return printJSON(os.Stdout, map[string]string{"id": c.ID, "state": "revoked"})
		}
		fmt.Println("revoked", c.ID)
		return nil
	})
}

type rulesExplainCmd struct {
	remote `embed:""`
	ID     string `arg:"" help:"the rule's id (tidegate rules list)"`
}

func (c *rulesExplainCmd) Run() error {
	var why string
	var state *enforcev1.RuleState
	err := c.enforce(func(ctx context.Context, e enforcev1.EnforceServiceClient) error {
		resp, err := e.ExplainRule(ctx, &enforcev1.ExplainRuleRequest{Id: c.ID})
		why, state = resp.GetExplanation(), resp.GetState()
		return err
	})
	if err != nil {
		return err
	}
	evidence := map[string]any{}
	if attack := state.GetRule().GetAttackId(); attack != "" {
		// What enforce does not know, the stored verdict tells; without persist the rest still helps.
		err := c.query(func(ctx context.Context, q queryv1.QueryServiceClient) error {
			resp, err := q.ListVerdicts(ctx, &queryv1.ListVerdictsRequest{AttackId: attack, Limit: 100})
			for _, v := range resp.GetVerdicts() {
				if v.Id == state.GetRule().GetVerdictId() {
					evidence = evidenceObject(v)
				}
			}
			return err
		})
		if err != nil {
			evidence["unavailable"] = err.Error()
		}
	}
	if c.JSON {
		return printJSON(os.Stdout, map[string]any{"rule": newRuleObject(state), "explanation": why, "evidence": evidence})
	}
	fmt.Println(why)
	keys := make([]string, 0, len(evidence))
	for k := range evidence {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		fmt.Printf("  %s: %v\n", k, evidence[k])
	}
	return nil
}

type statusCmd struct {
	remote `embed:""`
}

type statusObject struct {
	Services   []*statusv1.ServiceStatus `json:"services"`
	Interfaces []*ingestv1.Interface     `json:"interfaces,omitempty"`
	Enforcing  bool                      `json:"enforcing"`
	Rows       map[string]uint64         `json:"rows,omitempty"`
	Database   string                    `json:"database,omitempty"`
	Missing    []string                  `json:"missing,omitempty"` // services that did not answer
	Ledger     ledger.Sheet              `json:"ledger"`
}

// caller reaches one service, wherever it runs.
type caller func(service string, f func(ctx context.Context, c *grpc.ClientConn) error) error

func (r *remote) caller(service string, f func(ctx context.Context, c *grpc.ClientConn) error) error {
	return r.call(map[string]string{"ingest": r.IngestAddr, "classify": r.ClassifyAddr, "enforce": r.EnforceAddr, "persist": r.PersistAddr}[service], service, f)
}

// collect asks every service; one that does not answer is named in Missing.
func collect(call caller) statusObject {
	var o statusObject
	add := func(service string, f func(ctx context.Context, c *grpc.ClientConn) (*statusv1.ServiceStatus, error)) {
		err := call(service, func(ctx context.Context, c *grpc.ClientConn) error {
			s, err := f(ctx, c)
			if err == nil {
				o.Services = append(o.Services, s)
			}
			return err
		})
		if err != nil {
			o.Missing = append(o.Missing, err.Error())
		}
	}
	add("ingest", func(ctx context.Context, c *grpc.ClientConn) (*statusv1.ServiceStatus, error) {
		s, err := ingestv1.NewIngestServiceClient(c).Status(ctx, &ingestv1.StatusRequest{})
		o.Interfaces = s.GetInterfaces()
		return s.GetStatus(), err
	})
	add("classify", func(ctx context.Context, c *grpc.ClientConn) (*statusv1.ServiceStatus, error) {
		s, err := classifyv1.NewClassifyServiceClient(c).Status(ctx, &classifyv1.StatusRequest{})
		return s.GetStatus(), err
	})
	add("enforce", func(ctx context.Context, c *grpc.ClientConn) (*statusv1.ServiceStatus, error) {
		s, err := enforcev1.NewEnforceServiceClient(c).Status(ctx, &enforcev1.StatusRequest{})
		o.Enforcing = s.GetEnforcing()
		return s.GetStatus(), err
	})
	add("persist", func(ctx context.Context, c *grpc.ClientConn) (*statusv1.ServiceStatus, error) {
		s, err := queryv1.NewQueryServiceClient(c).Status(ctx, &queryv1.StatusRequest{})
		o.Rows, o.Database = s.GetRows(), s.GetDatabase()
		return s.GetStatus(), err
	})
	o.Ledger = ledger.Balance(o.Services)
	return o
}

func (c *statusCmd) Run() error {
	o := collect(c.caller)
	if c.JSON {
		return printJSON(os.Stdout, o)
	}
	var rows [][]string
	for _, s := range o.Services {
		ready := "ready"
		if !s.Ready {
			ready = "not ready"
		}
		rows = append(rows, []string{s.Service, ready, time.Since(time.Unix(0, s.StartedNs)).Round(time.Second).String(), orDash(strings.Join(s.Problems, "; "))})
	}
	if err := table(os.Stdout, "SERVICE STATE UP PROBLEMS", rows); err != nil {
		return err
	}
	for _, m := range o.Missing {
		fmt.Println("!", m)
	}
	for _, i := range o.Interfaces {
		fmt.Printf("%s: %s, %s, %d queues, %s received, %s ring drops\n", i.Name, i.Mode, i.Capture, i.Queues, quantity(float64(i.Received)), quantity(float64(i.RingDrops)))
	}
	fmt.Print(ledgerText(o.Ledger))
	if len(o.Services) == 0 {
		return errors.New("no service answers")
	}
	return nil
}

func since(d time.Duration) *queryv1.TimeRange {
	return &queryv1.TimeRange{FromNs: time.Now().Add(-d).UnixNano()}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
