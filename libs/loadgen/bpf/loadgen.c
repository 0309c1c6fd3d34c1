// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// Programs of the load generator. `send` makes frames: run by BPF_PROG_TEST_RUN with live frames it
// redirects into a veth at up to the machine's limit. `count` counts what arrives at the victim. `relay` is the least that a
// bridge can do, for comparison.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

enum { OPENING = 512 };

struct send_config {
	__u32 share;       // of every 1,024 frames so many are sent, the rest dropped: even pacing
	__u32 hosts;       // distinct destination addresses; a source talks to one of them
	__u32 source_base; // first source address, host order
	__u32 target_base; // first destination address, host order
	__u32 scatter;     // 1 to 32: each frame has one of 2^scatter sources, in no order, and the first target; 0: flows
	__u32 fixed_sum;   // of the template's IP header, without checksum, length and addresses
	__u32 tcp_sum;     // TCP: of the template's pseudo header and segment, without checksum, source port and addresses; 0: UDP
	__u32 length;      // of the template's IP packet
	__u32 renew;       // the oldest flow gives way to a new one each time so many frames were sent; 0: never. At least 2
	__u32 opening;     // bytes of UDP payload of a new flow's first frame; 0: as all others
	__u32 stamped;     // 1: UDP payload begins with STAMP and the time of sending, but for an opening; else with zeros
	__u8 first[OPENING];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct send_config);
} send_config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} send_port SEC(".maps");

// A flow's number makes its source address and port, and the address it talks to.
struct flow_number {
	__u32 flow;
	__u32 host;
};

struct send_state {
	__u64 calls;
	__u64 sent;
	__u64 renewed;
	// Flows from oldest to before newest are alive and take turns.
	struct flow_number next, oldest, newest;
	__u32 until; // frames until the oldest gives way
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct send_state);
} send_state SEC(".maps");

// What stamped frames have as the beginning of their UDP payload, with the time they were made, CLOCK_MONOTONIC in ns.
#define STAMP 0x7469646567617465

static __always_inline struct flow_number take(struct flow_number *n, __u32 hosts)
{
	struct flow_number taken = *n;

	if (!(++n->flow & 63) && ++n->host == hosts)
		n->host = 0;
	return taken;
}

static __always_inline __u16 folded(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return ~((sum & 0xffff) + (sum >> 16));
}

// The frame is a template of Ethernet, IPv4 without options and UDP without a checksum, or TCP. The pages
// of live frames come back as the program left them, so every varied field is written in full, never changed in place.
// No field takes a division: at ten million frames a second each would show.
SEC("xdp")
int send(struct xdp_md *ctx)
{
	__u32 zero = 0, source, target, addresses, length, opening = 0;
	__u16 port;
	struct send_config *cfg = bpf_map_lookup_elem(&send_config, &zero);
	struct send_state *st = bpf_map_lookup_elem(&send_state, &zero);

	if (!cfg || !st || !cfg->hosts)
		return XDP_ABORTED;
	// An odd stride spreads the frames that are sent evenly over each 1,024.
	if (((st->calls++ * 389) & 1023) >= cfg->share)
		return XDP_DROP;
	if (cfg->scatter) {
		__u32 mixed = (__u32)st->sent * 0x9e3779b1; // odd, so that a source comes again only after all others

		source = cfg->source_base + (mixed & ((1ULL << (cfg->scatter & 63)) - 1));
		target = cfg->target_base;
		port = 1024 + (mixed >> 17);
	} else {
		struct flow_number n;

		if (cfg->renew && !--st->until) {
			st->until = cfg->renew;
			st->renewed++;
			take(&st->oldest, cfg->hosts);
			n = take(&st->newest, cfg->hosts);
			opening = cfg->opening;
		} else {
			if (st->next.flow == st->newest.flow)
				st->next = st->oldest;
			n = take(&st->next, cfg->hosts);
		}
		source = cfg->source_base + n.flow / 64;
		target = cfg->target_base + n.host;
		port = 10000 + (n.flow & 0x7fff);
	}
	length = cfg->length;
	if (opening) {
		__u64 n = opening;

		length = sizeof(struct iphdr) + sizeof(struct udphdr) + opening;
		if (bpf_xdp_adjust_tail(ctx, (int)(length - cfg->length)))
			return XDP_ABORTED;
		asm volatile("" : "+r"(n)); // the compiler would leave out what the verifier has to see
		if (!n || n > OPENING ||
		    bpf_xdp_store_bytes(ctx, sizeof(struct ethhdr) + sizeof(struct iphdr) + sizeof(struct udphdr), cfg->first, n))
			return XDP_ABORTED;
	}

	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	struct tcphdr *tcp = (void *)(ip + 1);
	__u64 *stamp = (void *)(udp + 1);

	if ((void *)(udp + 1) > end)
		return XDP_ABORTED;
	st->sent++;
	ip->saddr = bpf_htonl(source);
	ip->daddr = bpf_htonl(target);
	ip->tot_len = bpf_htons(length);
	udp->source = bpf_htons(port);
	addresses = (source >> 16) + (source & 0xffff) + (target >> 16) + (target & 0xffff);
	ip->check = bpf_htons(folded(cfg->fixed_sum + length + addresses));
	if (cfg->tcp_sum) {
		if ((void *)(tcp + 1) > end)
			return XDP_ABORTED;
		tcp->check = bpf_htons(folded(cfg->tcp_sum + port + addresses));
		return bpf_redirect_map(&send_port, 0, XDP_ABORTED);
	}
	udp->len = bpf_htons(length - sizeof(struct iphdr));
	if (!opening && (void *)(stamp + 2) <= end) {
		stamp[0] = cfg->stamped ? STAMP : 0;
		stamp[1] = cfg->stamped ? bpf_ktime_get_ns() : 0;
	}
	return bpf_redirect_map(&send_port, 0, XDP_ABORTED);
}

struct count_config {
	__u32 benign_prefix; // network order
	__u32 benign_mask;   // network order
	__u32 drop;          // 1: drop what was counted, so that no stack limits a measurement
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct count_config);
} count_config SEC(".maps");

struct count_value {
	__u64 packets;
	__u64 bytes;
};

// 0 benign (inside the prefix), 1 attack (any other IPv4 source), 2 everything else.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, struct count_value);
} counts SEC(".maps");

// How long stamped frames were under way, in steps of 1 us; the last one has all that were longer.
enum { DELAY_STEPS = 1 << 14 };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DELAY_STEPS);
	__type(key, __u32);
	__type(value, __u64);
} delays SEC(".maps");

static __always_inline void delay(const struct iphdr *ip, const void *end)
{
	const struct udphdr *udp = (const void *)(ip + 1);
	const __u64 *stamp = (const void *)(udp + 1);
	__u64 now, *n;
	__u32 step;

	if ((const void *)(stamp + 2) > end || ip->protocol != IPPROTO_UDP || ip->ihl != 5 || stamp[0] != STAMP)
		return;
	now = bpf_ktime_get_ns();
	step = now > stamp[1] ? (now - stamp[1]) / 1000 : 0;
	if (step >= DELAY_STEPS)
		step = DELAY_STEPS - 1;
	n = bpf_map_lookup_elem(&delays, &step);
	if (n)
		++*n;
}

SEC("xdp")
int count(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	__u32 zero = 0, class = 2;
	struct count_config *cfg = bpf_map_lookup_elem(&count_config, &zero);

	if (!cfg)
		return XDP_PASS;
	if ((void *)(ip + 1) <= end && eth->h_proto == bpf_htons(ETH_P_IP)) {
		delay(ip, end);
		class = (ip->saddr & cfg->benign_mask) == cfg->benign_prefix ? 0 : 1;
	}
	struct count_value *v = bpf_map_lookup_elem(&counts, &class);

	if (v) {
		v->packets++;
		v->bytes += end - data;
	}
	return cfg->drop ? XDP_DROP : XDP_PASS;
}

SEC("xdp")
int relay(struct xdp_md *ctx)
{
	return bpf_redirect_map(&send_port, 0, XDP_ABORTED);
}

char _license[] SEC("license") = "Dual BSD/GPL";
