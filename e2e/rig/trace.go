package rig

import (
	"fmt"
	"time"
)

// Steps are how far a verdict came; each is a span of its trace.
type Steps struct {
	Applied, FirstDrop, Stored bool
	Apart                      bool // each service is a process of its own
}

const (
	// kernelClock is how far the kernel's coarse clock, by which the first drop is timed, may be behind.
	kernelClock = 10 * time.Millisecond
	// traceLimit is more than any sensible trace of a verdict lasts, on a machine that others load too.
	traceLimit = 30 * time.Second
)

// CheckVerdict says what is wrong with a verdict's trace: a hop that is missing, a parent that is not the step before,
// a second root, or times that cannot be.
func CheckVerdict(spans map[string]*Span, want Steps) error {
	c := verdictCheck{spans: spans, apart: want.Apart}
	root := c.only("window close", "ingest", nil)
	classify := c.only("classify", "classify", root)
	decide := c.only("decide", "classify", classify)
	publish := c.only("publish", "classify", decide)
	c.ordered(root, classify)
	c.ordered(classify, decide)
	c.ordered(decide, publish)
	if root != nil && (root.Duration <= 0 || root.Duration > 2*time.Second) {
		c.fail("the window lasted %v", root.Duration)
	}
	c.tagged(root, "tidegate.sensor", "tidegate.window")
	c.tagged(classify, "tidegate.attack.type", "tidegate.attack.target", "tidegate.verdict")
	c.tagged(publish, "tidegate.rules")
	applied, dropped, stored := 0, 0, false
	for _, s := range spans {
		parent := spans[s.Parent]
		if s.Duration < 0 || root != nil && (s.Start.Before(root.Start.Add(-kernelClock)) || s.End().Sub(root.Start) > traceLimit) {
			c.fail("%s begins %v after the window and lasts %v", s.Name, s.Start.Sub(root.Start), s.Duration)
		}
		switch s.Name {
		case "window close":
			if s.Parent != "" {
				c.fail("the window's close has the parent %s", s.Parent)
			}
			continue
		case "enforce apply":
			applied++
			c.from(s, "enforce", publish)
			c.tagged(s, "tidegate.rule", "tidegate.node")
		case "first drop":
			dropped++
			c.service(s, "enforce")
			c.tagged(s, "tidegate.rule", "tidegate.time_to_first_drop_ns")
			switch {
			case parent == nil || parent.Name != "enforce apply" || parent.Tags["tidegate.rule"] != s.Tags["tidegate.rule"]:
				c.fail("a first drop is not below the apply of its rule")
			case s.End().Before(parent.Start.Add(-kernelClock)):
				c.fail("a first drop ends %v before its rule is applied", parent.Start.Sub(s.End()))
			}
		case "persist.insert":
			c.service(s, "persist")
			if s.Tags["db.collection.name"] == "verdicts" {
				stored = true
				c.from(s, "persist", publish)
			}
		}
		if parent == nil {
			c.fail("the parent of %s is not in the trace: there is a second root", s.Name)
		}
	}
	for _, step := range []struct {
		want, have bool
		name       string
	}{{want.Applied, applied > 0, "enforce apply"}, {want.FirstDrop, dropped > 0, "first drop"}, {want.Stored, stored, "persist.insert of the verdict"}} {
		if step.want && !step.have {
			c.fail("no span %q", step.name)
		}
	}
	if c.err != nil {
		return fmt.Errorf("%w; spans: %s", c.err, c.list())
	}
	return nil
}

// verdictCheck keeps the first mistake.
type verdictCheck struct {
	spans map[string]*Span
	apart bool
	err   error
}

func (c *verdictCheck) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, args...)
	}
}

// only is the one span of a name; it has to come from a service and below parent.
func (c *verdictCheck) only(name, service string, parent *Span) *Span {
	var found *Span
	for _, s := range c.spans {
		if s.Name != name {
			continue
		}
		if found != nil {
			c.fail("span %q is there twice", name)
		}
		found = s
	}
	if found == nil {
		c.fail("no span %q", name)
		return nil
	}
	c.service(found, service)
	if parent != nil && found.Parent != parent.ID {
		c.fail("%s is not below %s", name, parent.Name)
	}
	return found
}

// from checks that a span comes from a service, is below parent and does not begin before it.
func (c *verdictCheck) from(s *Span, service string, parent *Span) {
	c.service(s, service)
	if parent == nil {
		return
	}
	if s.Parent != parent.ID {
		c.fail("%s is not below %s", s.Name, parent.Name)
	}
	if s.Start.Before(parent.Start) {
		c.fail("%s begins %v before %s", s.Name, parent.Start.Sub(s.Start), parent.Name)
	}
}

func (c *verdictCheck) service(s *Span, name string) {
	if c.apart && s.Service != "tidegate-"+name {
		c.fail("%s comes from %s", s.Name, s.Service)
	}
}

// ordered checks that a step begins after the one before has ended; Jaeger rounds to microseconds.
func (c *verdictCheck) ordered(before, after *Span) {
	if before != nil && after != nil && after.Start.Add(2*time.Microsecond).Before(before.End()) {
		c.fail("%s begins %v before %s has ended", after.Name, before.End().Sub(after.Start), before.Name)
	}
}

func (c *verdictCheck) tagged(s *Span, keys ...string) {
	for _, k := range keys {
		if s != nil && s.Tags[k] == nil {
			c.fail("%s has no %s", s.Name, k)
		}
	}
}

func (c *verdictCheck) list() string {
	out := ""
	for _, s := range c.spans {
		parent := "-"
		if p := c.spans[s.Parent]; p != nil {
			parent = p.Name
		}
		out += fmt.Sprintf("\n  %s of %s below %s, %s for %v", s.Name, s.Service, parent, s.Start.Format("05.000000"), s.Duration)
	}
	return out
}
