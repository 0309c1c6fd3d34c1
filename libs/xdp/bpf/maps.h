/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The maps. Sizes are defaults: Go sets them from Geometry before loading. */
#ifndef TIDEGATE_MAPS_H
#define TIDEGATE_MAPS_H

#include "state.h"

#define MAP(name, map_type, key_type, value_type, entries)                                                             \
	struct {                                                                                                       \
		MAP_UINT(type, map_type);                                                                              \
		MAP_TYPE(key, key_type);                                                                               \
		MAP_TYPE(value, value_type);                                                                           \
		MAP_UINT(max_entries, entries);                                                                        \
	} name SEC(".maps")

/* Room for many entries that costs memory as it is used: Go decides the number, most interfaces use little of it. */
#define SPARSE(name, key_type, value_type, entries)                                                                    \
	struct {                                                                                                       \
		MAP_UINT(type, BPF_MAP_TYPE_HASH);                                                                     \
		MAP_TYPE(key, key_type);                                                                               \
		MAP_TYPE(value, value_type);                                                                           \
		MAP_UINT(max_entries, entries);                                                                        \
		MAP_UINT(map_flags, BPF_F_NO_PREALLOC);                                                                \
	} name SEC(".maps")

#define TRIE(name, value_type, entries)                                                                                \
	struct {                                                                                                       \
		MAP_UINT(type, BPF_MAP_TYPE_LPM_TRIE);                                                                 \
		MAP_TYPE(key, struct prefix_key);                                                                      \
		MAP_TYPE(value, value_type);                                                                           \
		MAP_UINT(max_entries, entries);                                                                        \
		MAP_UINT(map_flags, BPF_F_NO_PREALLOC);                                                                \
	} name SEC(".maps")

/* One for all CPUs, so that packets of a flow keep their order. Its size is in bytes, a power of two. */
struct {
	MAP_UINT(type, BPF_MAP_TYPE_RINGBUF);
	MAP_UINT(max_entries, 8 << 20);
} gate_copies SEC(".maps");

MAP(gate_meta, BPF_MAP_TYPE_ARRAY, __u32, struct meta, 1);
MAP(gate_config, BPF_MAP_TYPE_ARRAY, __u32, struct config, 1);
MAP(gate_masks, BPF_MAP_TYPE_ARRAY, __u32, struct mask_set, MASK_SETS);
MAP(gate_rules, BPF_MAP_TYPE_HASH, __u64, struct rule, 65536);
MAP(gate_hits, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct hits, 16384);
MAP(gate_state, BPF_MAP_TYPE_ARRAY, __u32, struct rule_state, 16384);
SPARSE(gate_hosts, struct host_key, struct listed, 65536);
MAP(gate_covered, BPF_MAP_TYPE_ARRAY, __u32, struct covered, COVERED_LINES);
MAP(gate_lists, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct hits, MAX_LISTS);
MAP(gate_flows, BPF_MAP_TYPE_HASH, struct flow_key, struct flow_meter, 131072);
MAP(gate_counters, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct counters, MAX_QUEUES);
MAP(gate_sockets, BPF_MAP_TYPE_XSKMAP, __u32, __u32, MAX_QUEUES);
MAP(gate_peer, BPF_MAP_TYPE_DEVMAP, __u32, __u32, 1);
MAP(gate_sources, BPF_MAP_TYPE_ARRAY, __u32, struct source_line, 1 << 18);
MAP(gate_pair, BPF_MAP_TYPE_ARRAY, __u32, __u64, PAIR_FIELDS);
MAP(gate_talks, BPF_MAP_TYPE_ARRAY, __u32, struct talk_line, TALK_LINES);
TRIE(gate_tracked, __u32, 4096);
MAP(gate_syns, BPF_MAP_TYPE_ARRAY, __u32, struct syn_bucket, SYN_BUCKETS);
MAP(gate_known, BPF_MAP_TYPE_LRU_HASH, struct host_key, struct known, MAX_KNOWN);
TRIE(gate_never, struct never, 4096);
TRIE(gate_prefixes, struct listed, 65536);

#endif
