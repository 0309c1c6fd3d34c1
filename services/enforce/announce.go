package enforce

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

const (
	announceHang = 5 * time.Second  // a program that reads nothing for so long hangs
	announceEnd  = time.Second / 2  // for it to end after its input has
	announceLast = 3 * announceEnd  // the same for one that only begins
	announceMin  = time.Second      // until it is started again,
	announceMax  = 30 * time.Second // at most
	announceLook = 250 * time.Millisecond
	announceText = 256 // bytes of what it last wrote on its standard error
)

// announcer is the target that routers upstream are: FlowSpec routes, as lines that ExaBGP takes, on the standard input of
// a program that passes them on. Rules that drop become routes that discard, rules that allow routes that accept.
//
// PutRules and DeleteRules note what is wanted; the goroutine of run tells the program what differs from what it was told.
type announcer struct {
	path  string
	limit int
	hang  time.Duration
	keep  bool   // the routes stay when run ends
	file  string // see savedRoutes; empty: none
	saved string // its content
	t     *telemetry.Telemetry
	wake  chan struct{}

	mu      sync.Mutex
	rules   map[uint64]xdp.Rule
	told    map[string]policy.Action // routes of which a program was told
	problem error                    // why no program runs; nil while one does
}

func newAnnouncer(path string, limit int, keep bool, t *telemetry.Telemetry) *announcer {
	return &announcer{
		path: path, limit: limit, keep: keep, hang: announceHang, t: t, wake: make(chan struct{}, 1),
		rules: make(map[uint64]xdp.Rule), told: make(map[string]policy.Action), problem: errors.New("it was not started yet"),
	}
}

// PutRules implements Action. ErrRuleLimit when there are as many routes as are allowed.
func (a *announcer) PutRules(rules []xdp.Rule) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer a.poke()
	var errs []error
	for _, r := range rules {
		_, err := flowSpec(&r.Match)
		switch _, there := a.rules[r.ID]; {
		case err != nil:
		case r.WouldDrop || r.Action != policy.Drop && r.Action != policy.Allow:
			err = errors.New("only what drops or allows is announced")
		case !there && len(a.rules) >= a.limit:
			err = fmt.Errorf("%w: %d routes", xdp.ErrRuleLimit, len(a.rules))
		}
		if err != nil {
			delete(a.rules, r.ID)
			errs = append(errs, &xdp.RuleError{ID: r.ID, Err: err})
			continue
		}
		a.rules[r.ID] = r
	}
	return errors.Join(errs...)
}

// takes says why not all of these can be routes beside so many others.
func (a *announcer) takes(rules []xdp.Rule, others int) error {
	for i := range rules {
		if _, err := flowSpec(&rules[i].Match); err != nil {
			return err
		}
	}
	if others+len(rules) > a.limit {
		return fmt.Errorf("it takes %d routes with what it must spare, and there are %d others: --upstream-limit is %d", len(rules), others, a.limit)
	}
	return nil
}

// DeleteRules implements Action.
func (a *announcer) DeleteRules(ids []uint64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer a.poke()
	for _, id := range ids {
		delete(a.rules, id)
	}
	return nil
}

// Rules implements Action.
func (a *announcer) Rules() ([]xdp.Rule, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Collect(maps.Values(a.rules)), nil
}

// RuleStats implements Action: FlowSpec has no way back.
func (a *announcer) RuleStats([]uint64) (map[uint64]xdp.RuleStat, error) { return nil, ErrNoCounters }

// Close implements Action; the program ends with run.
func (a *announcer) Close() error { return nil }

func (a *announcer) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// state is how many routes a program was told of, how many it should be, and why no program runs: nil if one does.
func (a *announcer) state() (told, wanted int, problem error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.told), len(a.wanted()), a.problem
}

// wanted are the routes that there should be. Two rules can mean the same route.
func (a *announcer) wanted() map[string]policy.Action {
	out := make(map[string]policy.Action, len(a.rules))
	for _, r := range a.rules {
		conditions, err := flowSpec(&r.Match)
		if err == nil && out[conditions] != policy.Allow {
			out[conditions] = r.Action
		}
	}
	return out
}

// lines are what to tell the program. A fresh one is told of all that is wanted, and that what another one was told of
// is not any more. What is accepted comes before what is discarded, and goes after it.
func (a *announcer) lines(fresh, end bool) (text []byte, then map[string]policy.Action) {
	a.mu.Lock()
	defer a.mu.Unlock()
	then = a.wanted()
	if end {
		then = map[string]policy.Action{}
	}
	type line struct {
		order int
		text  string
	}
	var all []line
	say := func(order int, word, conditions string, action policy.Action) {
		does := "discard"
		if action == policy.Allow {
			does = "accept"
		}
		all = append(all, line{order, word + " flow route { match { " + conditions + "} then { " + does + "; } }\n"})
	}
	for c, action := range then {
		if had, ok := a.told[c]; fresh || !ok || had != action {
			say(map[policy.Action]int{policy.Allow: 0, policy.Drop: 1}[action], "announce", c, action)
		}
	}
	for c, action := range a.told {
		if _, ok := then[c]; !ok {
			say(map[policy.Action]int{policy.Drop: 2, policy.Allow: 3}[action], "withdraw", c, action)
		}
	}
	slices.SortFunc(all, func(x, y line) int { return cmp.Or(cmp.Compare(x.order, y.order), strings.Compare(x.text, y.text)) })
	var b bytes.Buffer
	for _, l := range all {
		b.WriteString(l.text)
	}
	return b.Bytes(), then
}

// run keeps a program running until ctx ends; then it withdraws the routes, unless they are to stay. What was told before
// this process began is withdrawn first.
func (a *announcer) run(ctx context.Context) {
	a.recall()
	a.keepServing(ctx)
	if told, _, _ := a.state(); told > 0 && !a.keep {
		// The program has ended before it took them back: a service manager may have signalled it, too.
		if err := a.serve(ctx); err != nil {
			a.t.CountError("upstream")
			a.t.Log.Error("routes upstream were not withdrawn", "routes", told, "error", err)
		}
	}
}

func (a *announcer) keepServing(ctx context.Context) {
	wait := announceMin
	for {
		begin := time.Now()
		err := a.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(begin) > announceMax {
			wait = announceMin
		}
		a.note(err)
		a.t.CountError("upstream")
		a.t.Log.Error("no program takes routes upstream, starting it again", "error", err, "in", wait)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, announceMax)
	}
}

func (a *announcer) note(problem error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.problem = problem
}

// serve starts a program and tells it of routes until it ends, hangs, or ctx ends (nil). When ctx has ended before, the
// program is told of the end alone.
func (a *announcer) serve(ctx context.Context) error {
	in, out, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	c := exec.Command(a.path) //nolint:gosec // the operator's program
	c.Dir, c.Stdin = "/", in
	// Nothing of the service's own environment, which holds passwords.
	c.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.WaitDelay = announceEnd
	var last lastBytes
	c.Stderr = &last
	err = c.Start()
	_ = in.Close()
	if err != nil {
		return fmt.Errorf("start %s: %w", a.path, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	stop := func() { // also what the program has started
		_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
		<-ended
	}
	gone := func(err error) error {
		return fmt.Errorf("%s ended (%w)%s", a.path, cmp.Or(err, errors.New("exit status 0")), last.text())
	}
	a.t.Log.Info("routes upstream go to the program", "program", a.path, "pid", c.Process.Pid)
	a.note(nil)
	look := time.NewTicker(announceLook)
	defer look.Stop()
	reading := reader{since: time.Now()}
	for fresh := true; ; fresh = false {
		if ctx.Err() != nil {
			limit := announceEnd
			if fresh {
				limit = announceLast
			}
			a.part(out, limit, ended, stop)
			return nil
		}
		if err := a.tell(out, fresh, false); err != nil {
			select {
			case err := <-ended:
				return gone(err)
			case <-time.After(announceLook): // not because it has ended
			}
			stop()
			return fmt.Errorf("%s takes no input: %w%s", a.path, err, last.text())
		}
		select {
		case <-a.wake:
		case err := <-ended:
			return gone(err)
		case <-look.C:
			if reading.hangs(out, a.hang) {
				stop()
				return fmt.Errorf("%s has read nothing of its input for %s and was killed%s", a.path, a.hang, last.text())
			}
		case <-ctx.Done():
		}
	}
}

// part withdraws the routes, unless they are to stay, and lets the program end. What it may not have taken back stays told.
func (a *announcer) part(out *os.File, limit time.Duration, ended <-chan error, stop func()) {
	before := a.known()
	var err error
	if !a.keep {
		err = a.tell(out, false, true)
	}
	_ = out.Close()
	select {
	case e := <-ended:
		err = errors.Join(err, e)
	case <-time.After(limit):
		stop()
		err = errors.Join(err, errors.New("it did not end with its input and was killed"))
	}
	if err == nil {
		return
	}
	a.mu.Lock()
	a.told = before
	a.mu.Unlock()
	a.save(before)
	a.t.CountError("upstream")
	a.t.Log.Error("the end of routes upstream", "program", a.path, "error", err)
}

// known are the routes of which a program was told.
func (a *announcer) known() map[string]policy.Action {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.told)
}

// tell writes what differs from what the program was told.
func (a *announcer) tell(out *os.File, fresh, end bool) error {
	text, then := a.lines(fresh, end)
	if len(text) == 0 {
		return nil
	}
	limit := a.hang
	if end {
		limit = announceEnd
	}
	if err := out.SetWriteDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	all := a.known()
	maps.Copy(all, then)
	a.save(all) // before: this process may be killed now
	_, err := out.Write(text)
	if err != nil { // it may know some of it, and what it knows too much is withdrawn from the next one
		then = all
	}
	a.mu.Lock()
	a.told = then
	a.mu.Unlock()
	a.save(then)
	return err
}

// reader watches whether the other side of a pipe reads.
type reader struct {
	unread int
	since  time.Time // it is so
}

func (r *reader) hangs(out *os.File, limit time.Duration) bool {
	unread := 0
	raw, err := out.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { unread, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }) //nolint:gosec // a descriptor
	}
	if unread == 0 || unread != r.unread {
		r.unread, r.since = unread, time.Now()
	}
	return time.Since(r.since) >= limit && unread > 0
}

// lastBytes keeps the end of what is written to it.
type lastBytes struct {
	mu sync.Mutex
	b  []byte
}

func (l *lastBytes) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p...)
	l.b = l.b[max(0, len(l.b)-announceText):]
	return len(p), nil
}

// text is ": …" or empty.
func (l *lastBytes) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := strings.TrimSpace(string(l.b)); t != "" {
		return ": " + t
	}
	return ""
}
