/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Never-block entries, rules and address lists. */
#ifndef TIDEGATE_RULES_H
#define TIDEGATE_RULES_H

#include "maps.h"
#include "parse.h"
#include "retry.h"
#include "sources.h"
#include "talks.h"

inline_always int never_blocked(const struct packet *p)
{
	struct prefix_key key = {.bits = 128};
	struct never *found;

	key.addr[0] = p->src[0];
	key.addr[1] = p->src[1];
	found = bpf_map_lookup_elem(&gate_never, &key);
	if (found && found->flags & NEVER_SOURCE)
		return 1;
	key.addr[0] = p->dst[0];
	key.addr[1] = p->dst[1];
	found = bpf_map_lookup_elem(&gate_never, &key);
	return found && found->flags & NEVER_DESTINATION;
}

inline_always void hit(struct hits *h, __u64 size, __u64 now, int dropped)
{
	h->packets++;
	h->bytes += size;
	h->dropped += dropped;
	h->last_ns = now;
}

/*
 * Applies the action of the rule that decides. The first drop's time is exact and is taken once: the tests
 * in front keep the state, the clock and the exchange off every later drop.
 */
inline_always enum verdict apply(struct packet *p, const struct rule *r)
{
	__u64 size = p->size, now = p->now;
	__u32 slot = r->slot;
	struct hits *h = bpf_map_lookup_elem(&gate_hits, &slot);
	struct rule_state *s;
	enum verdict v = UNDECIDED;

	if (!h)
		return UNDECIDED;
	if (r->action == ACTION_ALLOW)
		v = ALLOWED;
	else if (r->action == ACTION_DROP)
		v = DROPPED;
	else if (r->flags & RULE_SYN_RETRY)
		v = syn_retry(p, r);
	else if (r->action == ACTION_RATE_LIMIT &&
		 (r->flags & RULE_PER_SOURCE ? source_exceeds(p, r) : exceeds(r, size, now)))
		v = RATE_LIMITED;
	p->unasked = v == DROPPED && r->flags & RULE_OUT_OF_STATE;
	if (v == KNOWN)
		return UNDECIDED;
	if ((v == DROPPED || v == RATE_LIMITED) && unlikely(!h->dropped)) { /* the first on this CPU */
		s = bpf_map_lookup_elem(&gate_state, &slot);
		if (s && !s->first_drop_ns)
			__sync_val_compare_and_swap(&s->first_drop_ns, 0, bpf_ktime_get_ns());
	}
	hit(h, size, now, v == DROPPED || v == RATE_LIMITED);
	return v;
}

/*
 * Whether the packet lies in the mask's ranges and has the fields that the mask looks at. One branch for all, because
 * with one for each the verifier has too many ways to go. What is below 0, or not 0, ends in the top bit.
 */
inline_always int in_range(const struct mask *m, const struct packet *p)
{
	__u64 outside = ((__u64)p->length - m->len_min) | ((__u64)m->len_max - p->length);
	__u64 wrong = m->family * (m->family ^ p->family);

	outside |= ((__u64)p->ttl - m->ttl_min) | ((__u64)m->ttl_max - p->ttl);
	wrong |= m->fragment * ((m->fragment & FRAGMENT_ONLY) ^ p->fragment);
	wrong |= (m->tcp_mask | m->src_port_mask | m->dst_port_mask) * (p->ports_known ^ 1);
	return (__s64)(outside | -wrong) >= 0;
}

/* Whether the packet has what all rules of the mask have in common. One branch for all fields. */
inline_always int in_common(const struct mask *m, const struct packet *p)
{
	__u64 differs = (p->src[0] & m->src_care[0]) ^ m->src_want[0];

	differs |= (p->src[1] & m->src_care[1]) ^ m->src_want[1];
	differs |= (p->dst[0] & m->dst_care[0]) ^ m->dst_want[0];
	differs |= (p->dst[1] & m->dst_care[1]) ^ m->dst_want[1];
	differs |= (p->src_port & m->src_port_care) ^ m->src_port_want;
	differs |= (p->dst_port & m->dst_port_care) ^ m->dst_port_want;
	differs |= (p->protocol & m->protocol_care) ^ m->protocol_want;
	differs |= (p->tcp_flags & m->tcp_care) ^ m->tcp_want;
	return !differs;
}

/* The key under which a rule of the mask that selects the packet is. */
inline_always void select_key(const struct packet *p, const struct mask *m, struct rule_key *key)
{
	key->src[0] = p->src[0] & m->src_mask[0];
	key->src[1] = p->src[1] & m->src_mask[1];
	key->dst[0] = p->dst[0] & m->dst_mask[0];
	key->dst[1] = p->dst[1] & m->dst_mask[1];
	/* digest reads this word whole: from several stores it would have to wait for the cache. */
	*(__u64 *)&key->mask = m->id | (__u64)(p->src_port & m->src_port_mask) << 16 |
			       (__u64)(p->dst_port & m->dst_port_mask) << 32 |
			       (__u64)(p->protocol & m->protocol_mask) << 48 | (__u64)(p->tcp_flags & m->tcp_mask) << 56;
	/* In memory, not in registers: there the verifier goes through every mask again for each way that led to it. */
	asm volatile("" : : "r"(key) : "memory");
}

/* The last word of a key: mask, ports, protocol and flags. */
inline_always __u64 rest(const struct rule_key *k)
{
	return *(__u64 *)&k->mask;
}

/*
 * Which entry of gate_rules is a key's: the sum of the products of its words with secret odd factors, addresses read so that
 * the bits in which hosts of a network differ are low. What it selects is compared whole, so a digest that two keys share
 * does no harm; user space never puts two rules with one digest.
 */
inline_always __u64 digest(const struct rule_key *k, const __u64 *factors)
{
	return __builtin_bswap64(k->src[0]) * factors[0] + __builtin_bswap64(k->src[1]) * factors[1] +
	       __builtin_bswap64(k->dst[0]) * factors[2] + __builtin_bswap64(k->dst[1]) * factors[3] + rest(k) * factors[4];
}

inline_always __u64 differ(const struct rule_key *a, const struct rule_key *b)
{
	return (a->src[0] ^ b->src[0]) | (a->src[1] ^ b->src[1]) | (a->dst[0] ^ b->dst[0]) | (a->dst[1] ^ b->dst[1]) |
	       (rest(a) ^ rest(b));
}

/*
 * Rules that only observe (count, shadow, and all that would stop a packet in tap mode) are counted wherever
 * they match and never end the search: a rule in shadow must not shield a packet from one in force. Among
 * the others the most specific mask decides, then the priority.
 */
inline_always enum verdict match_rules(const struct config *cfg, struct packet *p)
{
	__u32 at = cfg->mask_set, mode = cfg->mode;
	struct mask_set *set = bpf_map_lookup_elem(&gate_masks, &at);
	struct rule *best = NULL;
	struct rule_key key = {};
	__u32 count;

	if (!set)
		return UNDECIDED; /* cannot be */
	count = set->count;
	for (__u32 i = 0; i < MAX_MASKS; i++) {
		struct mask *m = &set->masks[i];
		struct rule *r;
		__u64 sum;

		if (i >= count || (best && m->specificity < p->specificity))
			break;
		if (!in_common(m, p) || !in_range(m, p))
			continue;
		select_key(p, m, &key);
		sum = digest(&key, set->factors);
		r = bpf_map_lookup_elem(&gate_rules, &sum);
		if (!r || differ(&key, &r->key))
			continue;
		if (r->expires_ns && r->expires_ns <= p->now)
			continue;
		if (r->flags & RULE_OUT_OF_STATE && (mode != MODE_INLINE || in_state(p)))
			continue;
		if (r->action == ACTION_COUNT || r->flags & RULE_WOULD_DROP ||
		    (mode == MODE_TAP && r->action != ACTION_ALLOW)) {
			__u32 slot = r->slot;
			struct hits *h = bpf_map_lookup_elem(&gate_hits, &slot);

			if (h)
				hit(h, p->size, p->now, 0);
			p->observed = 1;
			continue;
		}
		if (!best || r->priority > best->priority) {
			best = r;
			p->specificity = m->specificity;
		}
	}
	return best ? apply(p, best) : UNDECIDED;
}

inline_always enum verdict apply_listed(const struct listed *l, struct packet *p, __u32 mode)
{
	enum verdict v = UNDECIDED;
	__u32 list = l->list;
	struct hits *h;

	if (l->expires_ns && l->expires_ns <= p->now)
		return UNDECIDED;
	if (l->action == ACTION_ALLOW)
		v = ALLOWED;
	else if (l->action == ACTION_DROP && mode != MODE_TAP)
		v = DROPPED;
	else
		p->observed = 1;
	h = bpf_map_lookup_elem(&gate_lists, &list);
	if (h)
		hit(h, p->size, p->now, v == DROPPED);
	return v;
}

/* Whether a prefix of a list may be around the source; see COVERED_LINES. */
inline_always int covered(const struct packet *p)
{
	struct covered *c;
	__u32 bit, line;

	if (p->src[0] || (__u32)p->src[1] != MAPPED_PREFIX)
		bit = COVERED_V6 + ((__u32)p->src[0] * 0x9e3779b1 >> 8);
	else
		bit = __builtin_bswap32(p->src[1] >> 32) >> 8;
	line = bit >> 9;
	c = bpf_map_lookup_elem(&gate_covered, &line);
	return c && c->bits[bit >> 6 & 7] >> (bit & 63) & 1;
}

/* Address lists look at the source: single addresses first, then the longest prefix. */
inline_always enum verdict match_lists(const struct config *cfg, struct packet *p)
{
	enum verdict v = UNDECIDED;
	struct listed *l;

	if (cfg->hosts_used) {
		struct host_key key = {.addr = {p->src[0], p->src[1]}};

		l = bpf_map_lookup_elem(&gate_hosts, &key);
		if (l)
			v = apply_listed(l, p, cfg->mode);
	}
	if (v == UNDECIDED && cfg->prefixes_used && covered(p)) {
		struct prefix_key key = {.bits = 128};

		key.addr[0] = p->src[0];
		key.addr[1] = p->src[1];
		l = bpf_map_lookup_elem(&gate_prefixes, &key);
		if (l)
			v = apply_listed(l, p, cfg->mode);
	}
	return v;
}

#endif
