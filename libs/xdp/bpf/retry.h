/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * SYNs of sources that nobody knows. A host that gets no answer sends the same SYN again, after a second (RFC 6298 2.1;
 * never sooner than half of one); a flood from made-up addresses does not. So the first one is dropped, the same one
 * again passes, and its source is known from then on: its SYNs pass at the rule's rate for each source.
 *
 * Nothing is kept of who has not come again but 32 bits in a bucket of four, the oldest of which makes room: at a million
 * SYNs a second a mark outlives the second that matters in 98 of 100 buckets.
 */
#ifndef TIDEGATE_RETRY_H
#define TIDEGATE_RETRY_H

#include "maps.h"
#include "parse.h"
#include "sources.h"

/* What the stages before the mode's decision say about a packet. */
enum verdict { UNDECIDED, ALLOWED, DROPPED, RATE_LIMITED, KNOWN };

/* Times of marks are in ticks of 2^24 ns, 16.8 ms, and wrap after 18 minutes. */
enum {
	TICK_SHIFT = 24,
	RETRY_SOONEST = 30, /* 0.5 s */
	RETRY_LATEST = 1192, /* 20 s */
};
#define KNOWN_NS 600000000000LL /* without a SYN for so long, a source must show itself again */

/* Whether the same SYN came before, as a retransmission would; if not it is marked. */
inline_always int came_before(const struct packet *p, __u64 now)
{
	__u64 h = mix(mix(mix(mix(mix(0, p->src[0]), p->src[1]), p->dst[0]), p->dst[1]), (__u64)p->src_port << 16 | p->dst_port);
	__u32 at = h & (SYN_BUCKETS - 1), mark = h >> 48 << 16, oldest = 0, most = 0;
	__u16 tick = now >> TICK_SHIFT;
	struct syn_bucket *b = bpf_map_lookup_elem(&gate_syns, &at);

	if (!b)
		return 0; /* cannot be */
#pragma clang loop unroll(full)
	for (__u32 i = 0; i < 4; i++) {
		__u32 seen = b->seen[i];
		__u16 age = tick - (__u16)seen;

		if ((seen & 0xffff0000) == mark && age <= RETRY_LATEST)
			return age >= RETRY_SOONEST;
		if (age >= most) {
			most = age;
			oldest = i;
		}
	}
	b->seen[oldest & 3] = mark | tick;
	return 0;
}

/*
 * KNOWN is a SYN of a known source, within its rate. It is not counted for the rule, so that what the rule counts are SYNs
 * nobody sent again and, for each that somebody did, the dropped one and the passed one.
 * Two CPUs may count one SYN of a source for two: a rate of each source need not be exact.
 */
checked_alone int syn_retry(const struct packet *p, const struct rule *r)
{
	struct host_key who = {};
	struct known fresh = {}, *k;
	__u64 now, cost;

	if (!p || !r)
		return UNDECIDED;
	now = p->now;
	cost = r->rate ? 1000000000ULL / r->rate : 1000000000ULL;
	who.addr[0] = p->src[0];
	who.addr[1] = p->family == 6 ? 0 : p->src[1]; /* a host may take any address of its /64 */
	k = bpf_map_lookup_elem(&gate_known, &who);
	/* Signed: the coarse clock may be a tick behind what another CPU has read. */
	if (k && (__s64)(now - k->last_ns) < KNOWN_NS) {
		k->last_ns = now;
		if (k->due > now + r->burst_ns)
			return RATE_LIMITED;
		k->due = (k->due > now ? k->due : now) + cost;
		return KNOWN;
	}
	if (!came_before(p, now))
		return DROPPED;
	fresh.last_ns = now;
	fresh.due = now + cost;
	bpf_map_update_elem(&gate_known, &who, &fresh, 0);
	return UNDECIDED;
}

#endif
