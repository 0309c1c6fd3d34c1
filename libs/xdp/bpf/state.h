/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the program and libs/xdp's Go share: the layout of every map. A change of a layout or of a meaning
 * raises GATE_ABI in Go (abi.go), which makes the next Open replace maps that an older build pinned.
 */
#ifndef TIDEGATE_STATE_H
#define TIDEGATE_STATE_H

#include "kernel.h"

enum { MAX_MASKS = 32, MASK_SETS = 64, MAX_QUEUES = 256, MAX_LISTS = 1024, SYN_BUCKETS = 1 << 20, MAX_KNOWN = 65536, SOURCE_WAYS = 4, TALK_WAYS = 7, TALK_LINES = 1 << 17 };

/*
 * A bit for each IPv4 /24 and, from COVERED_V6 on, for each value that the first 32 bits of an IPv6 address hash to:
 * set where a prefix of a list may be. Most sources meet a 0 there, which spares them the trie.
 */
enum { COVERED_V6 = 1 << 24, COVERED_LINES = 1 << 16 };

struct covered {
	__u64 bits[8];
};

enum mode { MODE_HOST, MODE_INLINE, MODE_TAP };

/* What becomes of packets that no AF_XDP socket takes. By the mode: inline forwards them, tap drops them. */
enum unread { UNREAD_BY_MODE, UNREAD_DROP, UNREAD_PASS };

/* The numbers of libs/policy. */
enum action { ACTION_ALLOW = 1, ACTION_DROP, ACTION_RATE_LIMIT, ACTION_COUNT };

enum { RULE_WOULD_DROP = 1, RULE_RATE_BITS = 2, RULE_SYN_RETRY = 4, RULE_PER_SOURCE = 8, RULE_OUT_OF_STATE = 16 };
enum { NEVER_SOURCE = 1, NEVER_DESTINATION = 2 };
enum { FRAGMENT_ANY, FRAGMENT_ONLY, FRAGMENT_WHOLE };

/* Written by user space under the pin directory's lock; every field is read on its own. */
struct config {
	__u32 mode;
	__u32 unread; /* enum unread */
	__u32 mask_set; /* which entry of mask_sets is in force */
	__u32 never_used; /* 0: the map is empty, its lookup is skipped; so below */
	__u32 hosts_used;
	__u32 prefixes_used;
	__u32 flows_used;
	__u32 next_mask; /* next mask id to give out */
	__u32 copies_read; /* host mode: somebody reads gate_copies */
	__u32 tracked_used;
	__u64 tracked_since; /* when the newest prefix of gate_tracked came, coarse CLOCK_MONOTONIC */
	__u64 rules_version; /* rises with every change of rules, for caches of other processes */
};

/*
 * A mask says which parts of a packet go into the lookup key and which ranges the packet must lie in.
 * Rules of one shape share a mask. A set is sorted by falling specificity.
 */
struct mask {
	__u64 src_mask[2]; /* network byte order */
	__u64 dst_mask[2];
	/*
	 * What all rules of the mask have in common: the bits to look at and their values. Most packets that no
	 * rule of the mask selects differ here, which spares them the hash.
	 */
	__u64 src_care[2];
	__u64 src_want[2];
	__u64 dst_care[2];
	__u64 dst_want[2];
	__u16 src_port_care; /* network byte order */
	__u16 src_port_want;
	__u16 dst_port_care;
	__u16 dst_port_want;
	__u8 protocol_care;
	__u8 protocol_want;
	__u8 tcp_care;
	__u8 tcp_want;
	__u16 id;
	__u16 specificity;
	__u16 len_min;
	__u16 len_max;
	__u16 src_port_mask; /* all ones or 0; so below */
	__u16 dst_port_mask;
	__u8 protocol_mask;
	__u8 tcp_mask;
	__u8 ttl_min;
	__u8 ttl_max;
	__u8 family; /* 0 any, 4, 6 */
	__u8 fragment;
	__u8 src_bits; /* of the 16-byte address */
	__u8 dst_bits;
	__u8 variant; /* the same shape again, for rules that match the same packets */
	__u8 pad[7];
};

enum { KEY_WORDS = 5 };

struct mask_set {
	__u32 count;
	__u32 pad;
	__u64 factors[KEY_WORDS]; /* of digests of keys: odd, random, the same in all sets */
	struct mask masks[MAX_MASKS];
};

/* What a rule selects. gate_rules has it by its digest, so that the kernel hashes 8 bytes and not 40; see digest in rules.h. */
struct rule_key {
	__u64 src[2];
	__u64 dst[2];
	__u16 mask;
	__u16 src_port; /* network byte order */
	__u16 dst_port;
	__u8 protocol;
	__u8 tcp_flags;
};

struct rule {
	struct rule_key key;
	__u64 expires_ns; /* CLOCK_MONOTONIC; 0 = never */
	__u32 slot;
	__s32 priority;
	__u8 action;
	__u8 flags;
	__u8 pad[6];
	__u64 id;
	__u64 rate; /* packets or bits per second */
	__u64 burst_ns; /* how far ahead of its rate a rule may run */
};

/* Per CPU and slot. */
struct hits {
	__u64 packets;
	__u64 bytes;
	__u64 dropped;
	__u64 last_ns; /* coarse CLOCK_MONOTONIC */
};

/* Per slot. */
struct rule_state {
	__u64 first_drop_ns; /* CLOCK_MONOTONIC, written once */
	__u64 due; /* rate limit: when the next packet is due, in 1/16 ns */
	struct bpf_spin_lock lock;
	__u32 pad;
};

/* What a rule with a rate of each source keeps of one; see sources.h. */
struct source {
	__u64 mark; /* a hash of rule, rate and source */
	__u64 due; /* when its next packet is due, in 1/16 ns; from then on the place is free */
};

struct source_line {
	struct source of[SOURCE_WAYS];
};

/* Who has sent to whom; see talks.h. Times are in ticks of 16.8 ms. */
struct talk_line {
	__u32 mark[TALK_WAYS]; /* 0: free */
	__u32 tick[TALK_WAYS];
	__u32 learns; /* 1: the line has forgotten a talk that may go on */
	__u32 learns_from;
};

/* Of gate_pair, which the gates of an inline pair share as they do gate_talks. */
enum { PAIR_SEED, PAIR_SINCE /* when they were joined, ns; 0: this gate is alone */, PAIR_FIELDS };

/* SYNs that were dropped and may come again: a mark of the packet, and when it came, in 16 bits each; see retry.h. */
struct syn_bucket {
	__u32 seen[4];
};

/* A source whose SYN came again. */
struct known {
	__u64 last_ns; /* coarse CLOCK_MONOTONIC, of its newest SYN */
	__u64 due; /* when its next one is due, ns */
};

struct prefix_key {
	__u32 bits;
	__u64 addr[2];
} __attribute__((packed));

struct never {
	__u32 own; /* what was asked for this prefix */
	__u32 flags; /* own and those of all wider prefixes around it */
};

struct host_key {
	__u64 addr[2];
};

struct listed {
	__u64 expires_ns;
	__u32 list;
	__u8 action;
	__u8 pad[3];
};

struct flow_key {
	__u64 src[2];
	__u64 dst[2];
	__u16 src_port; /* network byte order */
	__u16 dst_port;
	__u16 vlan; /* host byte order */
	__u8 protocol;
	__u8 pad;
};

/*
 * Packets of one direction mostly come to one CPU, the first that meets the flow: it counts without a locked instruction.
 * Those that come to others are counted beside.
 */
struct flow_meter {
	__u64 packets;
	__u64 bytes;
	__u64 last_ns;
	__u32 cpu; /* whose the counters above are, + 1; 0: nobody's yet */
	__u32 pad;
	__u64 other_packets;
	__u64 other_bytes;
};

/* The first bytes of a frame, for user space. */
enum { COPY_BYTES = 240 };

struct copy {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u32 size; /* of the frame */
	__u32 kept; /* of it, in bytes */
	__u8 bytes[COPY_BYTES];
};

/* Per CPU and rx queue. seen is the sum of drop, rate_limited, pass, forward, redirect and no_reader. */
struct counters {
	__u64 seen;
	__u64 drop;
	__u64 rate_limited;
	__u64 pass;
	__u64 forward;
	__u64 redirect;
	__u64 no_reader;
	__u64 count; /* from here on beside the ledger */
	__u64 allow;
	__u64 unread;
	__u64 never;
	__u64 metered;
	__u64 out_of_state; /* part of drop: by a rule for such packets */
	__u64 forgotten; /* its source pushed out another that was held to its rate */
	__u64 copied;
	__u64 uncopied; /* gate_copies was full */
	__u64 drop_bytes; /* of whole frames, Ethernet header included; so below */
	__u64 rate_limited_bytes;
	__u64 pass_bytes;
	__u64 forward_bytes;
	__u64 redirect_bytes;
	__u64 no_reader_bytes;
	__u64 count_bytes;
	__u64 clock_tick; /* the coarse clock as this CPU last read it, no counters; see coarse_now in gate.c */
	__u64 clock_ns;
};

/* Who made the pins, and the maps of what size. */
struct meta {
	__u32 abi;
	__u32 ifindex;
	__u64 netns_inode;
	__u64 netns_cookie; /* 0: the kernel does not tell */
	__u64 build; /* which object is attached */
	__u32 rules;
	__u32 rule_buckets;
	__u32 hosts;
	__u32 prefixes;
	__u32 flows;
	__u32 nevers;
	__u32 sources; /* places in gate_sources, SOURCE_WAYS a line; the program reads it */
	__u32 pad;
	__u64 seed; /* of the marks of sources, random */
};

#endif
