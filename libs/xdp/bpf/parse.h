/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Frame to packet facts: Ethernet, up to two VLAN tags, IPv4 (RFC 791), IPv6 (RFC 8200), ports and TCP flags. */
#ifndef TIDEGATE_PARSE_H
#define TIDEGATE_PARSE_H

#include "state.h"

enum { MAX_VLAN_TAGS = 2, MAX_EXTENSIONS = 8 };

enum {
	ETHERTYPE_IPV4 = 0x0800,
	ETHERTYPE_VLAN = 0x8100,
	ETHERTYPE_IPV6 = 0x86dd,
	ETHERTYPE_QINQ = 0x88a8,
};

enum {
	PROTO_HOP_BY_HOP = 0,
	PROTO_TCP = 6,
	PROTO_UDP = 17,
	PROTO_ROUTING = 43,
	PROTO_FRAGMENT = 44,
	PROTO_AUTHENTICATION = 51,
	PROTO_DESTINATION = 60,
	PROTO_SCTP = 132,
};

enum { TCP_FIN = 1, TCP_SYN = 2, TCP_RST = 4, TCP_ACK = 16 };

/* Headers. Not packed, or the compiler would read them byte by byte; amd64 and arm64 read words at any address. */
struct ethernet {
	__u8 dst[6];
	__u8 src[6];
	__u16 type;
};

struct vlan_tag {
	__u16 control;
	__u16 type;
};

struct ipv4 {
	__u8 version_ihl;
	__u8 tos;
	__u16 length;
	__u16 id;
	__u16 fragment;
	__u8 ttl;
	__u8 protocol;
	__u16 checksum;
	__u32 src;
	__u32 dst;
};

struct ipv6 {
	__u32 version_class_label;
	__u16 length;
	__u8 next;
	__u8 hop_limit;
	__u64 src[2];
	__u64 dst[2];
};

struct extension {
	__u8 next;
	__u8 length;
	__u16 offset; /* of a fragment header */
	__u32 rest;
};

struct ports {
	__u16 src;
	__u16 dst;
};

struct packet {
	__u64 src[2]; /* network byte order, IPv4 as ::ffff:a.b.c.d */
	__u64 dst[2];
	__u16 src_port; /* network byte order */
	__u16 dst_port;
	__u16 vlan; /* outermost tag's id */
	__u16 length; /* of the IP packet */
	__u8 protocol;
	__u8 ttl;
	__u8 family; /* 0: not IP, or not to be read */
	__u8 tcp_flags;
	__u8 fragment; /* any fragment */
	__u8 ports_known; /* the transport header was read */
	__u8 observed; /* a rule or list that only counts has matched */
	__u8 forgotten; /* its source pushed out another; see sources.h */
	__u8 unasked; /* dropped as out of state */
	__u16 specificity; /* of the best rule so far */
	__u32 size; /* of the frame in bytes */
	__u64 now; /* coarse CLOCK_MONOTONIC */
};

#define MAPPED_PREFIX 0xffff0000ULL /* bytes 8..11 of ::ffff:0:0 as a little-endian word */

/* What follows the IP headers; a later fragment does not come here. */
inline_always void parse_transport(struct packet *p, void *l4, void *end)
{
	struct ports *ports = l4;

	switch (p->protocol) {
	case PROTO_TCP:
		if (l4 + 14 > end)
			return;
		p->tcp_flags = ((__u8 *)l4)[13];
		break;
	case PROTO_UDP:
	case PROTO_SCTP:
		if (l4 + sizeof(*ports) > end)
			return;
		break;
	default:
		return;
	}
	p->src_port = ports->src;
	p->dst_port = ports->dst;
	p->ports_known = 1;
}

inline_always void parse_ipv4(struct packet *p, void *l3, void *end)
{
	struct ipv4 *ip = l3;
	__u64 header;

	if (l3 + sizeof(*ip) > end)
		return;
	header = (ip->version_ihl & 0x0f) * 4;
	if (ip->version_ihl >> 4 != 4 || header < sizeof(*ip))
		return;
	p->family = 4;
	p->src[0] = 0;
	p->src[1] = (__u64)ip->src << 32 | MAPPED_PREFIX;
	p->dst[0] = 0;
	p->dst[1] = (__u64)ip->dst << 32 | MAPPED_PREFIX;
	p->length = ntohs(ip->length);
	p->ttl = ip->ttl;
	p->protocol = ip->protocol;
	if (ip->fragment & htons(0x3fff)) { /* more fragments, or an offset */
		p->fragment = 1;
		if (ip->fragment & htons(0x1fff))
			return;
	}
	parse_transport(p, l3 + header, end);
}

inline_always void parse_ipv6(struct packet *p, void *l3, void *end)
{
	struct ipv6 *ip = l3;
	struct extension *ext;
	void *l4 = l3 + sizeof(*ip);
	__u8 next;

	if (l4 > end || (*(__u8 *)l3) >> 4 != 6)
		return;
	p->family = 6;
	p->src[0] = ip->src[0];
	p->src[1] = ip->src[1];
	p->dst[0] = ip->dst[0];
	p->dst[1] = ip->dst[1];
	p->length = ntohs(ip->length) + sizeof(*ip);
	p->ttl = ip->hop_limit;
	next = ip->next;
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		__u64 size;

		if (next != PROTO_HOP_BY_HOP && next != PROTO_ROUTING && next != PROTO_FRAGMENT &&
		    next != PROTO_AUTHENTICATION && next != PROTO_DESTINATION)
			break;
		ext = l4;
		if (l4 + sizeof(*ext) > end) {
			p->protocol = next;
			return;
		}
		if (next == PROTO_FRAGMENT) {
			size = sizeof(*ext);
			/* An atomic fragment (RFC 6946) has the header and is whole: neither offset nor more. */
			if (ext->offset & htons(0xfff9))
				p->fragment = 1;
			if (ext->offset & htons(0xfff8)) {
				p->protocol = ext->next;
				return;
			}
		} else if (next == PROTO_AUTHENTICATION) {
			size = (ext->length + 2) * 4;
		} else {
			size = (ext->length + 1) * 8;
		}
		next = ext->next;
		l4 += size;
	}
	p->protocol = next; /* with more headers than we follow, another one: a protocol without ports */
	parse_transport(p, l4, end);
}

/* Frames that are not plain IPv4: tagged, IPv6, others. */
checked_alone int parse_other(struct xdp_md *ctx, struct packet *p)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethernet *eth = data;
	void *l3 = data + sizeof(*eth);
	__u16 type;

	if (!p || l3 > end)
		return 0;
	type = eth->type;
#pragma clang loop unroll(full)
	for (int i = 0; i < MAX_VLAN_TAGS; i++) {
		struct vlan_tag *tag = l3;

		if (type != htons(ETHERTYPE_VLAN) && type != htons(ETHERTYPE_QINQ))
			break;
		l3 += sizeof(*tag);
		if (l3 > end)
			return 0;
		if (i == 0)
			p->vlan = ntohs(tag->control) & 0x0fff;
		type = tag->type;
	}
	if (type == htons(ETHERTYPE_IPV4))
		parse_ipv4(p, l3, end);
	else if (type == htons(ETHERTYPE_IPV6))
		parse_ipv6(p, l3, end);
	return p->family;
}

/* Fills p, which is zero when called. family stays 0 for what rules do not look at. */
inline_always int parse(struct xdp_md *ctx, struct packet *p)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethernet *eth = data;

	p->size = end - data;
	if (data + sizeof(*eth) > end)
		return 0;
	if (eth->type != htons(ETHERTYPE_IPV4))
		return parse_other(ctx, p);
	parse_ipv4(p, data + sizeof(*eth), end);
	return p->family;
}

#endif
