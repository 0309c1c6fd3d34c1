/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Host mode: packets go to the machine's own stack, and the first bytes of those that user space wants to see are copied
 * into a BPF ring buffer (kernel Documentation/bpf/ringbuf.rst). A full ring loses the copy, never the packet.
 */
#ifndef TIDEGATE_COPY_H
#define TIDEGATE_COPY_H

#include "maps.h"

/*
 * Packet bytes are copied eight at a time, because the verifier wants every access to have a bound of its own, and the last
 * eight once more from the end, which leaves no remainder.
 */
checked_alone int copy_up(struct xdp_md *ctx)
{
	const __u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 size = end - data, last = size;
	struct copy *c;
	int i;

	if (size < 8)
		return 0;
	c = bpf_ringbuf_reserve(&gate_copies, sizeof(*c), 0);
	if (!c)
		return 0;
	if (last > COPY_BYTES)
		last = COPY_BYTES;
	c->time_ns = bpf_ktime_get_ns();
	c->size = size;
	c->kept = last;
	for (i = 0; i < COPY_BYTES / 8; i++) {
		if (data + 8 * i + 8 > end)
			break;
		*(__u64 *)(c->bytes + 8 * i) = *(const __u64 *)(data + 8 * i);
	}
	last -= 8;
	hidden(last); /* the compiler would leave out the next line's bounds, which the verifier cannot work out */
	if (last <= COPY_BYTES - 8 && data + last + 8 <= end)
		*(__u64 *)(c->bytes + last) = *(const __u64 *)(data + last);
	bpf_ringbuf_submit(c, 0);
	return 1;
}

#endif
