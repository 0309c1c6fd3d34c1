// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The one XDP program of an interface: parse, never-block, rules, address lists, then the mode decides.
 * Every packet ends in exactly one outcome, and it is counted in one place.
 */
#include "copy.h"
#include "rules.h"

enum outcome { OUT_DROP, OUT_RATE_LIMITED, OUT_PASS, OUT_FORWARD, OUT_REDIRECT, OUT_NO_READER };

inline_always enum outcome forward(void)
{
	/* Without a peer (its interface is gone) there is nowhere to forward to. */
	return bpf_redirect_map(&gate_peer, 0, XDP_DROP) == XDP_REDIRECT ? OUT_FORWARD : OUT_NO_READER;
}

inline_always int to_reader(const struct xdp_md *ctx)
{
	return bpf_redirect_map(&gate_sockets, ctx->rx_queue_index, XDP_DROP) == XDP_REDIRECT;
}

/*
 * Flows that user space has decided to allow stay in the kernel, or go to the stack without a copy, metered. What begins or ends a TCP
 * connection goes up, so that the flow table sees it; so do fragments, which have no ports to tell by.
 */
inline_always int metered(const struct packet *p)
{
	struct flow_key key = {};
	struct flow_meter *m;
	__u32 cpu;

	if (!p->family || p->fragment)
		return 0;
	if (p->protocol == PROTO_TCP && p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST))
		return 0;
	if (!p->ports_known && (p->protocol == PROTO_TCP || p->protocol == PROTO_UDP || p->protocol == PROTO_SCTP))
		return 0;
	key.src[0] = p->src[0];
	key.src[1] = p->src[1];
	key.dst[0] = p->dst[0];
	key.dst[1] = p->dst[1];
	key.src_port = p->src_port;
	key.dst_port = p->dst_port;
	key.vlan = p->vlan;
	key.protocol = p->protocol;
	m = bpf_map_lookup_elem(&gate_flows, &key);
	if (!m)
		return 0;
	cpu = bpf_get_smp_processor_id() + 1;
	if (unlikely(!m->cpu))
		__sync_val_compare_and_swap(&m->cpu, 0, cpu);
	if (likely(m->cpu == cpu)) {
		m->packets++;
		m->bytes += p->size;
	} else {
		__sync_fetch_and_add(&m->other_packets, 1);
		__sync_fetch_and_add(&m->other_bytes, p->size);
	}
	m->last_ns = p->now;
	return 1;
}

inline_always enum outcome by_mode(struct xdp_md *ctx, const struct config *cfg, struct counters *c,
				   const struct packet *p)
{
	switch (cfg->mode) {
	case MODE_INLINE:
		if (cfg->flows_used && metered(p)) {
			c->metered++;
			return forward();
		}
		if (to_reader(ctx))
			return OUT_REDIRECT;
		if (cfg->unread == UNREAD_DROP)
			return OUT_NO_READER;
		c->unread++;
		return forward();
	case MODE_TAP:
		if (to_reader(ctx))
			return OUT_REDIRECT;
		return cfg->unread == UNREAD_PASS ? OUT_PASS : OUT_NO_READER;
	default:
		if (cfg->flows_used && metered(p))
			c->metered++;
		else if (cfg->copies_read) {
			if (copy_up(ctx))
				c->copied++;
			else
				c->uncopied++;
		}
		return OUT_PASS;
	}
}

/*
 * The kernel moves its coarse clock with its tick. The tick's number is one load, the clock a call that costs as much as the
 * search for a rule, so it is read once a tick. It may be one tick more behind than the clock itself.
 */
inline_always __u64 coarse_now(struct counters *c)
{
	__u64 tick = bpf_jiffies64();

	if (unlikely(c->clock_tick != tick)) {
		c->clock_tick = tick;
		c->clock_ns = bpf_ktime_get_coarse_ns();
	}
	return c->clock_ns;
}

inline_always enum outcome decide(struct xdp_md *ctx, const struct config *cfg, struct counters *c, __u64 size)
{
	struct packet p = {};
	enum verdict v;

	if (parse(ctx, &p)) {
		p.now = coarse_now(c);
		if (cfg->never_used && never_blocked(&p)) {
			c->never++;
			if (cfg->tracked_used)
				remember(&p);
			return by_mode(ctx, cfg, c, &p);
		}
		v = match_rules(cfg, &p);
		if (v == UNDECIDED)
			v = match_lists(cfg, &p);
		if (p.observed) {
			c->count_bytes += size;
			c->count++;
		}
		c->forgotten += p.forgotten;
		c->out_of_state += p.unasked;
		if (v == DROPPED)
			return OUT_DROP;
		if (v == RATE_LIMITED)
			return OUT_RATE_LIMITED;
		c->allow += v == ALLOWED;
		if (cfg->tracked_used)
			remember(&p);
	}
	return by_mode(ctx, cfg, c, &p);
}

SEC("xdp")
int tidegate(struct xdp_md *ctx)
{
	__u32 zero = 0, queue = ctx->rx_queue_index < MAX_QUEUES ? ctx->rx_queue_index : MAX_QUEUES - 1;
	struct counters *c = bpf_map_lookup_elem(&gate_counters, &queue);
	struct config *cfg = bpf_map_lookup_elem(&gate_config, &zero);
	__u64 size = (void *)(long)ctx->data_end - (void *)(long)ctx->data;

	if (!c || !cfg)
		return XDP_PASS; /* cannot be: indexes lie inside both arrays */
	c->seen++;
	switch (decide(ctx, cfg, c, size)) {
	case OUT_DROP:
		c->drop_bytes += size;
		c->drop++;
		return XDP_DROP;
	case OUT_RATE_LIMITED:
		c->rate_limited_bytes += size;
		c->rate_limited++;
		return XDP_DROP;
	case OUT_PASS:
		c->pass_bytes += size;
		c->pass++;
		return XDP_PASS;
	case OUT_FORWARD:
		c->forward_bytes += size;
		c->forward++;
		return XDP_REDIRECT;
	case OUT_REDIRECT:
		c->redirect_bytes += size;
		c->redirect++;
		return XDP_REDIRECT;
	default:
		c->no_reader_bytes += size;
		c->no_reader++;
		return XDP_DROP;
	}
}

char gate_license[] SEC("license") = "Dual BSD/GPL";
