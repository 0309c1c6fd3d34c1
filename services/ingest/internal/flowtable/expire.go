package flowtable

import (
	"math"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// single tells whether nothing of a flow was sent because it is one packet so far.
func single(e *entry) bool {
	return e.state&opened == 0 && e.part == 0 && e.packets[0]+e.packets[1] <= 1
}

// idle is the flow's idle timeout as it stands.
func (t *Table) idle(e *entry) time.Duration {
	switch {
	case e.state&closing != 0:
		return t.cfg.Linger
	case single(e):
		return t.cfg.IdleSingle
	case e.key.Protocol == packet.ProtoTCP:
		return t.cfg.IdleTCP
	case e.key.Protocol == packet.ProtoUDP:
		return t.cfg.IdleUDP
	}
	return t.cfg.IdleOther
}

// updateAt is when the next update is due.
func (e *entry) updateAt() int64 { return e.first + int64(e.update)*tickNs }

// nextUpdate sets when the next update is due, to the tick below at.
func (e *entry) nextUpdate(at int64) {
	e.update = uint32(min((at-e.first)/tickNs, math.MaxUint32)) //nolint:gosec // neither negative nor above
}

// waiting tells whether the flow is an attempt whose silence counts as a failure.
func waiting(e *entry) bool {
	if e.state&(attempt|failed|answered|handshake) != attempt {
		return false
	}
	// A one-sided stream that was picked up in mid-life is none.
	return e.key.Protocol != packet.ProtoTCP || e.state&(syn|invalid) != 0 || e.state&data == 0 && e.packets[0] <= 2
}

// part is when a part of the flow is told of, unless its end comes first. A flow that will have been silent for half its
// idle timeout by then is told of once, when that is over: its end would be a record of its own with nothing in it.
func (t *Table) part(e *entry) (at int64, due bool) {
	at = e.first + int64(t.cfg.Active)
	return at, t.cfg.Active > 0 && e.last+int64(t.idle(e))/2 > at
}

// deadline is when the flow must be looked at next.
func (t *Table) deadline(e *entry) int64 {
	at := e.last + int64(t.idle(e))
	if waiting(e) {
		at = min(at, e.first+int64(t.cfg.AnswerTimeout))
	}
	if part, due := t.part(e); due {
		at = min(at, part)
	}
	if t.cfg.Update > 0 && e.state&opened != 0 {
		at = min(at, e.updateAt())
	}
	return at
}

// endReason is why a flow that timed out ended.
func endReason(e *entry) flowv1.EndReason {
	switch f := e.flags[0] | e.flags[1]; {
	case e.state&closing == 0:
		return flowv1.EndReason_END_REASON_IDLE
	case f&packet.FlagRST != 0:
		return flowv1.EndReason_END_REASON_RST
	}
	return flowv1.EndReason_END_REASON_FIN
}

// Calm tells whether Advance has nothing to do at nowNs.
func (t *Table) Calm(nowNs int64) bool { return nowNs < t.calmUntil }

// Advance runs the timers up to nowNs, looking at a bounded number of flows. It reports whether more are due,
// so a caller that can afford it calls again at once; otherwise the next call goes on. failed is called for
// every attempt that got no answer in time, with a Failure that is valid during the call; nil is allowed.
// Summaries of the last 100 ms are appended when the next begin.
func (t *Table) Advance(nowNs int64, out *Out, failed func(*Failure)) (more bool) {
	t.clock(nowNs)
	if t.Calm(t.now) {
		return false
	}
	tick := t.now / tickNs
	if tick != t.interval {
		t.interval = tick
		t.exported, t.sent = 0, 0
		t.sums.emit(out)
	}
	w := &t.wheel
	if t.stats.Active == 0 {
		w.cursor = max(w.cursor, tick+1)
	}
	if tick-w.cursor >= wheelSlots {
		w.cursor = tick - wheelSlots + 1 // every slot is still passed once
	}
	for done := 0; w.cursor <= tick; {
		head := w.heads[w.cursor%wheelSlots]
		if head == 0 {
			w.skip(tick)
			continue
		}
		if done == perAdvance {
			return true
		}
		done++
		t.due(head-1, &t.entries[head-1], out, failed)
	}
	t.calmUntil = w.cursor * tickNs
	return false
}

// due does what a linked entry's deadlines ask for and links it anew if it stays.
func (t *Table) due(i uint32, e *entry, out *Out, failed func(*Failure)) {
	if waiting(e) && e.first+int64(t.cfg.AnswerTimeout) <= t.now {
		t.fail(i, e, Silence, t.now)
		if failed != nil {
			failed(&t.failure)
		}
	}
	if e.last+int64(t.idle(e)) <= t.now {
		t.finish(i, e, endReason(e), out)
		return
	}
	if part, due := t.part(e); due && part <= t.now {
		t.export(i, e, flowv1.EndReason_END_REASON_ACTIVE, out)
		e.part++
		e.first = t.now
		e.packets, e.bytes = [2]uint64{}, [2]uint64{}
		if e.state&tracked != 0 {
			t.connections[i].retransmits = [2]uint32{}
		}
		e.state |= opened | failedIfUnanswered(e)
		e.nextUpdate(t.now + int64(t.cfg.Update))
	}
	if t.cfg.Update > 0 && e.state&opened != 0 && e.updateAt() <= t.now {
		if e.last > e.updateAt()-int64(t.cfg.Update) {
			flow.AppendUpdate(out.of(&e.key), t.id(i, e), totals(e), e.last)
		}
		e.nextUpdate(t.now + int64(t.cfg.Update))
	}
	t.unlink(e)
	t.link(i, e, max(t.deadline(e), t.now))
}

// failedIfUnanswered keeps later parts of a one-sided flow from being taken for attempts of their own.
func failedIfUnanswered(e *entry) uint16 {
	if e.state&answered == 0 {
		return failed
	}
	return 0
}

func totals(e *entry) flow.Totals {
	return flow.Totals{PacketsFwd: e.packets[0], PacketsRev: e.packets[1], BytesFwd: e.bytes[0], BytesRev: e.bytes[1]}
}

// export appends an end record.
func (t *Table) export(i uint32, e *entry, r flowv1.EndReason, out *Out) {
	flow.AppendEnd(out.of(&e.key), &flow.End{
		ID: t.id(i, e), Key: e.key, FirstNs: e.first, LastNs: max(e.last, e.first), Totals: totals(e),
		FlagsFwd: e.flags[0], FlagsRev: e.flags[1], Reason: r, Part: e.part, TCP: t.facts(i, e),
	})
}

// finish ends a linked flow, by a record of its own or within a summary, and frees the entry.
func (t *Table) finish(i uint32, e *entry, r flowv1.EndReason, out *Out) {
	one := t.cfg.SummariseAbove > 0 && single(e)
	switch {
	case one && t.exported >= t.cfg.SummariseAbove:
		t.sums.add(&e.key.Dst, e.key.Protocol, e.packets[0], e.bytes[0])
		t.stats.Summarised++
	default:
		if one {
			t.exported++
		}
		t.export(i, e, r, out)
		if r == flowv1.EndReason_END_REASON_EVICTED {
			t.stats.Evicted++
		} else {
			t.stats.Ended++
		}
	}
	t.stats.Active--
	t.unlink(e)
	t.remove(e.tag, i)
	e.state = 0
	e.next = t.free
	t.free = i + 1
}

// Flush ends all flows, a bounded number a call, and reports whether more are left: the caller hands the batch
// over and calls again. Attempts that were still waiting for an answer are reported as failed only if their
// time was up: the end of the capture is no silence.
func (t *Table) Flush(nowNs int64, out *Out, failed func(*Failure)) (more bool) {
	t.clock(nowNs)
	done := 0
	for ; t.flushed < t.high && t.stats.Active > 0; t.flushed++ {
		i := t.flushed
		e := &t.entries[i]
		if e.state&used == 0 {
			continue
		}
		if done == perAdvance {
			return true
		}
		done++
		if waiting(e) && e.first+int64(t.cfg.AnswerTimeout) <= t.now {
			t.fail(i, e, Silence, t.now)
			if failed != nil {
				failed(&t.failure)
			}
		}
		r := endReason(e)
		if r == flowv1.EndReason_END_REASON_IDLE {
			r = flowv1.EndReason_END_REASON_SHUTDOWN
		}
		t.finish(i, e, r, out)
	}
	t.flushed = 0
	t.sums.emit(out)
	return false
}
