/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What a rule that asks for it takes as out of state: TCP but first SYNs, and UDP, to a port that did not send to theirs
 * before. That is a segment of no connection, a SYN-ACK that answers no SYN, an answer that nobody asked for. Only what the
 * rules' destinations send is remembered, so that nobody outside fills the table. The two gates of an inline pair share it:
 * one sees the packets that it remembers, the other those that it looks up.
 *
 * Nobody is cut off for what the table cannot know: for a minute after the checks began, after the gates were joined, and in
 * a line that had to forget a talk that may go on, everything passes.
 */
#ifndef TIDEGATE_TALKS_H
#define TIDEGATE_TALKS_H

#include "maps.h"
#include "parse.h"
#include "sources.h"

enum {
	TALK_TICK_SHIFT = 24, /* 16.8 ms */
	TALK_TCP = 443459, /* 2 h 4 min (RFC 5382, REQ-5) */
	TALK_UDP = 17881, /* 5 min (RFC 4787, REQ-5) */
	TALK_LEARN = 3576, /* 1 min */
};

inline_always int may_talk(const struct packet *p)
{
	return p->ports_known && (p->protocol == PROTO_TCP || p->protocol == PROTO_UDP);
}

inline_always __u64 talk(const __u64 *from, const __u64 *to, __u16 from_port, __u16 to_port, __u8 protocol)
{
	__u32 at = PAIR_SEED;
	__u64 *seed = bpf_map_lookup_elem(&gate_pair, &at);
	__u64 h = mix(mix(mix(seed ? *seed : 0, from[0]), from[1]), to[0]);

	return mix(mix(h, to[1]), (__u64)protocol << 32 | (__u32)from_port << 16 | to_port);
}

/* Remembers what a destination of the rules sends. */
checked_alone int remember(const struct packet *p)
{
	struct prefix_key key = {.bits = 128};
	__u32 at, mark, tick, most = 0, oldest = 0;
	struct talk_line *l;
	__u64 h;

	if (!p || !may_talk(p))
		return 0;
	key.addr[0] = p->src[0];
	key.addr[1] = p->src[1];
	if (!bpf_map_lookup_elem(&gate_tracked, &key))
		return 0;
	h = talk(p->src, p->dst, p->src_port, p->dst_port, p->protocol);
	at = h >> 32 & (TALK_LINES - 1);
	mark = (__u32)h | 1;
	tick = p->now >> TALK_TICK_SHIFT;
	l = bpf_map_lookup_elem(&gate_talks, &at);
	if (!l)
		return 0; /* cannot be */
#pragma clang loop unroll(full)
	for (__u32 i = 0; i < TALK_WAYS; i++) {
		__u32 age = tick - l->tick[i];

		if (!l->mark[i])
			age = ~0U;
		else if ((__s32)age < 0) /* another CPU's coarse clock is a tick ahead */
			age = 0;
		if (l->mark[i] == mark) {
			if (age)
				l->tick[i] = tick;
			return 1;
		}
		if (age >= most) {
			most = age;
			oldest = i;
		}
	}
	if (oldest >= TALK_WAYS)
		return 0; /* cannot be */
	if (most <= TALK_TCP) {
		l->learns = 1;
		l->learns_from = tick;
	}
	l->tick[oldest] = tick;
	l->mark[oldest] = mark;
	return 1;
}

/* Whether anything speaks for the packet: nothing does when it is out of state. */
checked_alone int in_state(const struct packet *p)
{
	__u32 zero = 0, at = PAIR_SINCE, mark, tick;
	struct talk_line *l;
	struct config *cfg;
	__u64 *since, h;

	if (!p || !may_talk(p) || (p->protocol == PROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN))
		return 1;
	cfg = bpf_map_lookup_elem(&gate_config, &zero);
	since = bpf_map_lookup_elem(&gate_pair, &at);
	if (!cfg || !since || !*since)
		return 1; /* the gate has no partner: it cannot know */
	tick = p->now >> TALK_TICK_SHIFT;
	/* Signed: the coarse clock may be a tick behind what user space or another CPU has read. */
	if ((__s32)(tick - (__u32)(*since >> TALK_TICK_SHIFT)) < TALK_LEARN ||
	    (__s32)(tick - (__u32)(cfg->tracked_since >> TALK_TICK_SHIFT)) < TALK_LEARN)
		return 1;
	h = talk(p->dst, p->src, p->dst_port, p->src_port, p->protocol);
	at = h >> 32 & (TALK_LINES - 1);
	mark = (__u32)h | 1;
	l = bpf_map_lookup_elem(&gate_talks, &at);
	if (!l || (l->learns && (__s32)(tick - l->learns_from) < TALK_LEARN))
		return 1;
#pragma clang loop unroll(full)
	for (__u32 i = 0; i < TALK_WAYS; i++)
		if (l->mark[i] == mark)
			return (__s32)(tick - l->tick[i]) <= (p->protocol == PROTO_TCP ? TALK_TCP : TALK_UDP);
	return 0;
}

#endif
