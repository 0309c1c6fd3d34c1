/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Rates: of a whole rule, and of each of its sources. Virtual scheduling: each packet moves the time at which the next one
 * is due by its share of the rate; a packet that comes more than the burst too early exceeds the rate. The burst is several
 * ticks of the coarse clock, so that clock's steps do not show in the rate.
 *
 * Sources share one table of fixed size. A source whose next packet is due is like one that was never seen, so its place is
 * free; nothing has to expire. Only when all places of a line are taken by sources with time to wait does a new one push
 * out the one that waits the shortest, which begins anew: a full table limits less, it never limits more.
 */
#ifndef TIDEGATE_SOURCES_H
#define TIDEGATE_SOURCES_H

#include "maps.h"
#include "parse.h"

/* Nanoseconds are shifted so that a rate of 15 M packets/s keeps three digits of its 66.7 ns. */
enum { DUE_SHIFT = 4 };

/* A packet's share of the rule's rate, in shifted ns. */
inline_always __u64 share(const struct rule *r, __u64 size)
{
	__u64 second = 1000000000ULL << DUE_SHIFT;

	return r->rate ? second * (r->flags & RULE_RATE_BITS ? size * 8 : 1) / r->rate : second;
}

inline_always int exceeds(const struct rule *r, __u64 size, __u64 now)
{
	__u64 cost = share(r, size), burst = r->burst_ns << DUE_SHIFT;
	__u32 slot = r->slot;
	struct rule_state *s = bpf_map_lookup_elem(&gate_state, &slot);
	int over = 0;

	if (!s)
		return 0; /* cannot be */
	now <<= DUE_SHIFT;
	bpf_spin_lock(&s->lock);
	if (s->due > now + burst)
		over = 1;
	else
		s->due = (s->due > now ? s->due : now) + cost;
	bpf_spin_unlock(&s->lock);
	return over;
}

inline_always __u64 mix(__u64 h, __u64 v)
{
	h = (h ^ v) * 0x9e3779b97f4a7c15ULL;
	return h ^ h >> 32;
}

/*
 * Several CPUs may see packets of one source: they take turns by compare-and-exchange, and whoever loses four times lets
 * its packet pass, since four others have just been counted. The mark is a hash with the gate's own seed, so that nobody
 * can choose sources that push one another out. For one rule and rate no two IPv4 addresses have the same.
 */
checked_alone int source_exceeds(struct packet *p, const struct rule *r)
{
	__u32 zero = 0, at, soonest = 0;
	__u64 mark, now, due, taken, least = ~0ULL;
	struct source_line *line;
	struct source *s = NULL;
	struct meta *m;

	if (!p || !r)
		return 0;
	m = bpf_map_lookup_elem(&gate_meta, &zero);
	if (!m)
		return 0; /* cannot be */
	now = p->now << DUE_SHIFT;
	mark = mix(mix(m->seed ^ r->id, r->rate), p->src[0]);
	mark = mix(mark, p->family == 6 ? 0 : p->src[1]); /* a host may take any address of its /64 */
	at = (mark >> 32) * ((m->sources + SOURCE_WAYS - 1) / SOURCE_WAYS) >> 32;
	line = bpf_map_lookup_elem(&gate_sources, &at);
	if (!line)
		return 0; /* cannot be */
#pragma clang loop unroll(full)
	for (__u32 i = 0; i < SOURCE_WAYS; i++) {
		if (line->of[i].mark == mark) {
			s = &line->of[i];
			break;
		}
		if (line->of[i].due < least) {
			least = line->of[i].due;
			soonest = i;
		}
	}
	if (!s) {
		s = &line->of[soonest & (SOURCE_WAYS - 1)];
		p->forgotten = least > now;
		if (__sync_val_compare_and_swap(&s->due, least, now + share(r, p->size)) == least)
			s->mark = mark;
		return 0;
	}
#pragma clang loop unroll(full)
	for (__u32 i = 0; i < 4; i++) {
		due = s->due;
		if (due > now + (r->burst_ns << DUE_SHIFT))
			return 1;
		taken = (due > now ? due : now) + share(r, p->size);
		if (__sync_val_compare_and_swap(&s->due, due, taken) == due)
			break;
	}
	return 0;
}

#endif
