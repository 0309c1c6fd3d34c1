package ops

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/pcapfile"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
)

// What one attack's page may bring together. An attack is updated, and its rules report hits, once a second: the
// newest pages hold how it stands, and the beginning is read apart.
const (
	detailPage      = 1000
	detailPages     = 5 // of revisions, of verdicts and of enforcement events
	beginning       = 30 * time.Second
	linkTypeRaw     = 101 // tcpdump.org/linktypes.html: begins with the IP header
	kindFirstPacket = "first_packet"
	kindAttack      = "attack"
	kindVerdict     = "verdict"
	kindEnforcement = "enforcement"
)

// pages reads a listing to its end, or detailPages of it: whole is false then.
func pages[T any](read func(token string) ([]T, string, error)) (all []T, whole bool, err error) {
	token := ""
	for range detailPages {
		items, next, err := read(token)
		if err != nil {
			return nil, false, err
		}
		all = append(all, items...)
		if next == "" {
			return all, true, nil
		}
		token = next
	}
	return all, false, nil
}

func noAttack(id string) *api.Problem {
	return problem(http.StatusNotFound, "there is no attack %q", id)
}

// Attack is an attack with its verdicts and everything that happened, in order of time.
func (o *Operations) Attack(ctx context.Context, id string) (api.AttackDetail, error) {
	if id == "" {
		return api.AttackDetail{}, noAttack(id)
	}
	var (
		revisions    []*eventv1.Attack
		verdicts     []*eventv1.Verdict
		enforcements []*eventv1.Enforcement
		errs         [3]error
		wg           sync.WaitGroup
	)
	for i, read := range []func() error{
		func() (err error) { revisions, err = o.revisions(ctx, id); return err },
		func() (err error) { verdicts, err = o.verdictsOf(ctx, id); return err },
		func() (err error) { enforcements, err = o.enforcements(ctx, id, nil); return err },
	} {
		wg.Add(1)
		go func() { defer wg.Done(); errs[i] = read() }()
	}
	wg.Wait()
	if err := cmp.Or(errs[0], errs[1], errs[2]); err != nil {
		return api.AttackDetail{}, err
	}
	if len(revisions) == 0 {
		return api.AttackDetail{}, noAttack(id)
	}
	newest := revisions[0]
	if len(enforcements) == detailPage*detailPages { // the oldest are missing: those of the beginning tell the most
		first, err := o.enforcements(ctx, id, start(newest).proto())
		if err != nil {
			return api.AttackDetail{}, err
		}
		enforcements = append(enforcements, first...)
	}
	out := api.AttackDetail{Attack: api.NewAttack(newest), Verdicts: each(verdicts, api.NewVerdict), PcapURL: "/api/v1/attacks/" + url.PathEscape(id) + "/pcap"}
	for _, e := range enforcements {
		if !e.GetShadow() {
			out.FirstDropNs = earlier(out.FirstDropNs, api.Nanos(e.GetFirstDropNs()))
		}
	}
	out.Timeline = timeline(revisions, verdicts, enforcements)
	return out, nil
}

// revisions are the newest states of an attack and those of its beginning, the newest first.
func (o *Operations) revisions(ctx context.Context, id string) ([]*eventv1.Attack, error) {
	read := func(span *queryv1.TimeRange) ([]*eventv1.Attack, bool, error) {
		return pages(func(token string) ([]*eventv1.Attack, string, error) {
			resp, err := o.listAttacks(ctx, &queryv1.ListAttacksRequest{Id: id, AllRevisions: true, Range: span, Limit: detailPage, PageToken: token})
			return resp.GetAttacks(), resp.GetNextPageToken(), err
		})
	}
	all, whole, err := read(nil)
	if err != nil || whole {
		return all, err
	}
	first, _, err := read(start(all[0]).proto())
	if err != nil {
		return nil, err
	}
	oldest := all[len(all)-1].GetRevision()
	for _, a := range first {
		if a.GetRevision() < oldest {
			all = append(all, a)
		}
	}
	return all, nil
}

// start is the beginning of an attack.
func start(a *eventv1.Attack) Range {
	return Range{From: time.Unix(0, a.GetFirstNs()), To: time.Unix(0, a.GetDetectedNs()).Add(beginning)}
}

func (o *Operations) verdictsOf(ctx context.Context, id string) ([]*eventv1.Verdict, error) {
	all, _, err := pages(func(token string) ([]*eventv1.Verdict, string, error) {
		resp, err := o.listVerdicts(ctx, &queryv1.ListVerdictsRequest{AttackId: id, Limit: detailPage / detailPages, PageToken: token})
		return resp.GetVerdicts(), resp.GetNextPageToken(), err
	})
	return all, err
}

func (o *Operations) enforcements(ctx context.Context, id string, span *queryv1.TimeRange) ([]*eventv1.Enforcement, error) {
	all, _, err := pages(func(token string) ([]*eventv1.Enforcement, string, error) {
		resp, err := ask(ctx, o, func(ctx context.Context, c queryv1.QueryServiceClient) (*queryv1.ListEnforcementsResponse, error) {
			return c.ListEnforcements(ctx, &queryv1.ListEnforcementsRequest{AttackId: id, Range: span, Limit: detailPage, PageToken: token})
		})
		return resp.GetEnforcements(), resp.GetNextPageToken(), err
	})
	return all, err
}

// timeline puts in order what happened. Of the hits that a rule reports once a second only the last are in it.
func timeline(revisions []*eventv1.Attack, verdicts []*eventv1.Verdict, enforcements []*eventv1.Enforcement) []api.TimelineEntry {
	newest := revisions[0]
	out := []api.TimelineEntry{{
		TimeNs: api.Nanos(newest.GetFirstNs()), Kind: kindFirstPacket, State: "seen", Node: newest.GetSensor(),
		Text: "The first packet against " + newest.GetTarget() + " arrived.",
	}}
	for _, a := range revisions {
		out = append(out, attackEntry(a))
	}
	for _, v := range verdicts {
		out = append(out, api.TimelineEntry{
			TimeNs: api.Nanos(v.GetDecidedNs()), Kind: kindVerdict, State: v.GetKey(), Node: v.GetSensor(),
			Text: cmp.Or(v.GetExplanation(), fmt.Sprintf("%d rules were decided.", len(v.GetRules()))),
		})
	}
	slices.SortStableFunc(enforcements, func(a, b *eventv1.Enforcement) int { return cmp.Compare(b.GetTimeNs(), a.GetTimeNs()) })
	type place struct{ node, rule string }
	hits, seen := map[place]bool{}, map[string]bool{}
	for _, e := range enforcements {
		if seen[e.GetId()] {
			continue
		}
		seen[e.GetId()] = true
		if at := (place{e.GetNode(), e.GetRuleId()}); e.GetState() == eventv1.EnforcementState_ENFORCEMENT_STATE_HITS {
			if hits[at] {
				continue
			}
			hits[at] = true
		}
		out = append(out, enforcementEntry(e))
	}
	order := map[string]int{kindFirstPacket: 0, kindAttack: 1, kindVerdict: 2, kindEnforcement: 3}
	slices.SortStableFunc(out, func(a, b api.TimelineEntry) int {
		return cmp.Or(cmp.Compare(a.TimeNs, b.TimeNs), cmp.Compare(order[a.Kind], order[b.Kind]))
	})
	return out
}

func attackEntry(a *eventv1.Attack) api.TimelineEntry {
	e := api.TimelineEntry{
		TimeNs: api.Nanos(a.GetUpdatedNs()), Kind: kindAttack, State: api.EnumName(a.GetState().String(), "ATTACK_STATE_"), Node: a.GetSensor(), Packets: a.GetPackets(),
	}
	switch a.GetState() {
	case eventv1.AttackState_ATTACK_STATE_STARTED:
		e.TimeNs = cmp.Or(api.Nanos(a.GetDetectedNs()), e.TimeNs)
		e.Text = fmt.Sprintf("%s against %s was detected: %.0f packets a second from about %d sources.", a.GetType(), a.GetTarget(), a.GetPps(), a.GetSources())
	case eventv1.AttackState_ATTACK_STATE_ENDED:
		e.TimeNs = cmp.Or(api.Nanos(a.GetEndedNs()), e.TimeNs)
		e.Text = fmt.Sprintf("The attack ended after %d packets.", a.GetPackets())
	default:
		e.Text = fmt.Sprintf("The attack goes on: %.0f packets a second from about %d sources.", a.GetPps(), a.GetSources())
	}
	return e
}

func enforcementEntry(e *eventv1.Enforcement) api.TimelineEntry {
	out := api.TimelineEntry{
		TimeNs: api.Nanos(e.GetTimeNs()), Kind: kindEnforcement, State: api.EnumName(e.GetState().String(), "ENFORCEMENT_STATE_"),
		Node: e.GetNode(), RuleID: e.GetRuleId(), Packets: e.GetPackets(),
	}
	rule := "Rule " + e.GetRuleId()
	switch e.GetState() {
	case eventv1.EnforcementState_ENFORCEMENT_STATE_APPLIED:
		out.Text = rule + " was applied."
		if e.GetShadow() {
			out.Text = rule + " was applied in shadow: it counts what it would drop."
		}
	case eventv1.EnforcementState_ENFORCEMENT_STATE_REFUSED:
		out.Text = rule + " was refused: " + strings.TrimSuffix(cmp.Or(e.GetDetail(), e.GetReason()), ".") + "."
	case eventv1.EnforcementState_ENFORCEMENT_STATE_FIRST_DROP:
		out.TimeNs = cmp.Or(api.Nanos(e.GetFirstDropNs()), out.TimeNs)
		out.Text = rule + " dropped its first packet."
		if d := time.Duration(e.GetTimeToFirstDropNs()); d > 0 {
			out.Text = fmt.Sprintf("%s dropped its first packet, %s after the attack's first.", rule, d.Round(time.Millisecond))
		}
		if e.GetShadow() {
			out.Text = rule + " would have dropped its first packet."
		}
	case eventv1.EnforcementState_ENFORCEMENT_STATE_HITS:
		out.Text = fmt.Sprintf("%s has met %d packets.", rule, e.GetPackets())
	case eventv1.EnforcementState_ENFORCEMENT_STATE_RENEWED:
		out.Text = rule + " was renewed, since it is still hit."
	case eventv1.EnforcementState_ENFORCEMENT_STATE_EXPIRED:
		out.Text = fmt.Sprintf("%s expired after %d packets.", rule, e.GetPackets())
	case eventv1.EnforcementState_ENFORCEMENT_STATE_REVOKED:
		out.Text = fmt.Sprintf("%s was revoked after %d packets.", rule, e.GetPackets())
	case eventv1.EnforcementState_ENFORCEMENT_STATE_UNCHANGED:
		out.Text = rule + " stays as it is: " + strings.TrimSuffix(cmp.Or(e.GetDetail(), e.GetReason()), ".") + "."
	case eventv1.EnforcementState_ENFORCEMENT_STATE_ANNOUNCED:
		out.Text = rule + " was sent upstream."
	case eventv1.EnforcementState_ENFORCEMENT_STATE_WITHDRAWN:
		out.Text = rule + " was taken back upstream: " + strings.TrimSuffix(e.GetDetail(), ".") + "."
	default:
		out.Text = rule + " changed."
	}
	return out
}

// AttackPcap is the sampled packets of an attack's verdicts, in order of time, as a pcap file. The samples begin at the
// IP header and are cut off; the records' original lengths are those of the IP headers.
func (o *Operations) AttackPcap(ctx context.Context, id string) (name string, capture []byte, err error) {
	if id == "" {
		return "", nil, noAttack(id)
	}
	verdicts, err := o.verdictsOf(ctx, id)
	if err != nil {
		return "", nil, err
	}
	samples := samplesOf(verdicts)
	if len(samples) == 0 {
		return "", nil, problem(http.StatusNotFound, "there are no sampled packets of an attack %q", id)
	}
	var b bytes.Buffer
	w, err := pcapfile.NewWriter(&b, linkTypeRaw, 0)
	if err != nil {
		return "", nil, o.problem(ctx, err)
	}
	for _, s := range samples {
		if err := w.Write(s.timeNs, s.data, wireLength(s.data)); err != nil {
			o.t.CountError("write_capture") // a time outside of the format's range
		}
	}
	if err := w.Flush(); err != nil {
		return "", nil, o.problem(ctx, err)
	}
	return "attack-" + fileName(id) + ".pcap", b.Bytes(), nil
}

type sample struct {
	timeNs int64
	data   []byte
}

// samplesOf collects the samples; verdicts about the same attack share some.
func samplesOf(verdicts []*eventv1.Verdict) []sample {
	var out []sample
	for _, v := range verdicts {
		times := v.GetEvidence().GetSampleTimesNs()
		for i, data := range v.GetEvidence().GetSamples() {
			s := sample{v.GetDecidedNs(), data}
			if i < len(times) {
				s.timeNs = times[i]
			}
			out = append(out, s)
		}
	}
	slices.SortStableFunc(out, func(a, b sample) int { return cmp.Or(cmp.Compare(a.timeNs, b.timeNs), bytes.Compare(a.data, b.data)) })
	return slices.CompactFunc(out, func(a, b sample) bool { return a.timeNs == b.timeNs && bytes.Equal(a.data, b.data) })
}

// wireLength is the IP packet's length (RFC 791 3.1, RFC 8200 3); 0 when the header does not tell.
func wireLength(p []byte) int {
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		return int(binary.BigEndian.Uint16(p[2:]))
	case len(p) >= 40 && p[0]>>4 == 6:
		return 40 + int(binary.BigEndian.Uint16(p[4:]))
	}
	return 0
}

// fileName keeps of an id what every file system and header takes.
func fileName(id string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.' {
			return r
		}
		return '_'
	}, id)
}
