package app

import (
	"crypto/subtle"
	"encoding/binary"
)

// The standard library gives no new key to a cipher that it made, so each QUIC flow would cost five allocations.
// What follows is AES-128 (FIPS 197) and GCM (NIST SP 800-38D) for opening only, in memory that is used again. Its time
// depends on the data, which gives nothing away here: the keys of Initial packets follow from a number in clear.

// aesTables are the substitution box and the columns of MixColumns for it, the other three rows by rotation.
var aesTables = makeAESTables()

type aesTable struct {
	box    [256]byte
	column [256]uint32
}

// makeAESTables computes the box from inverses in GF(2^8) modulo x^8+x^4+x^3+x+1 (FIPS 197 5.1.1).
func makeAESTables() *aesTable {
	t := &aesTable{}
	p, q := byte(1), byte(1)
	for {
		p ^= p<<1 ^ p>>7*0x1B // times 3
		q ^= q << 1           // divided by 3
		q ^= q << 2
		q ^= q << 4
		q ^= q >> 7 * 0x09
		x := q ^ (q<<1 | q>>7) ^ (q<<2 | q>>6) ^ (q<<3 | q>>5) ^ (q<<4 | q>>4)
		t.box[p] = x ^ 0x63
		if p == 1 {
			break
		}
	}
	t.box[0] = 0x63
	for i, s := range t.box {
		twice := s<<1 ^ s>>7*0x1B
		t.column[i] = uint32(twice)<<24 | uint32(s)<<16 | uint32(s)<<8 | uint32(twice^s)
	}
	return t
}

// aes128 is a key in use.
type aes128 struct{ round [44]uint32 }

// expand sets the key (FIPS 197 5.2).
func (a *aes128) expand(key []byte) {
	for i := range 4 {
		a.round[i] = binary.BigEndian.Uint32(key[4*i:])
	}
	constant := uint32(1) << 24
	box := &aesTables.box
	for i := 4; i < len(a.round); i++ {
		w := a.round[i-1]
		if i%4 == 0 {
			w = w<<8 | w>>24
			w = uint32(box[w>>24])<<24 | uint32(box[w>>16&255])<<16 | uint32(box[w>>8&255])<<8 | uint32(box[w&255])
			w ^= constant
			constant <<= 1
			if constant == 0 {
				constant = 0x1B << 24
			}
		}
		a.round[i] = a.round[i-4] ^ w
	}
}

func rotate(w uint32, by int) uint32 { return w>>by | w<<(32-by) }

// encrypt enciphers a block (FIPS 197 5.1).
func (a *aes128) encrypt(dst, src *[16]byte) {
	k, box, column := &a.round, &aesTables.box, &aesTables.column
	s0 := binary.BigEndian.Uint32(src[0:]) ^ k[0]
	s1 := binary.BigEndian.Uint32(src[4:]) ^ k[1]
	s2 := binary.BigEndian.Uint32(src[8:]) ^ k[2]
	s3 := binary.BigEndian.Uint32(src[12:]) ^ k[3]
	for r := 4; r < 40; r += 4 {
		t0 := column[s0>>24] ^ rotate(column[s1>>16&255], 8) ^ rotate(column[s2>>8&255], 16) ^ rotate(column[s3&255], 24) ^ k[r]
		t1 := column[s1>>24] ^ rotate(column[s2>>16&255], 8) ^ rotate(column[s3>>8&255], 16) ^ rotate(column[s0&255], 24) ^ k[r+1]
		t2 := column[s2>>24] ^ rotate(column[s3>>16&255], 8) ^ rotate(column[s0>>8&255], 16) ^ rotate(column[s1&255], 24) ^ k[r+2]
		t3 := column[s3>>24] ^ rotate(column[s0>>16&255], 8) ^ rotate(column[s1>>8&255], 16) ^ rotate(column[s2&255], 24) ^ k[r+3]
		s0, s1, s2, s3 = t0, t1, t2, t3
	}
	last := func(a, b, c, d, key uint32) uint32 {
		return (uint32(box[a>>24])<<24 | uint32(box[b>>16&255])<<16 | uint32(box[c>>8&255])<<8 | uint32(box[d&255])) ^ key
	}
	binary.BigEndian.PutUint32(dst[0:], last(s0, s1, s2, s3, k[40]))
	binary.BigEndian.PutUint32(dst[4:], last(s1, s2, s3, s0, k[41]))
	binary.BigEndian.PutUint32(dst[8:], last(s2, s3, s0, s1, k[42]))
	binary.BigEndian.PutUint32(dst[12:], last(s3, s0, s1, s2, k[43]))
}

// poly is an element of GF(2^128) as GCM writes it: the lowest power is the highest bit of hi.
type poly struct{ hi, lo uint64 }

// ghash multiplies by one element (SP 800-38D 6.4). products has it times every byte.
type ghash struct {
	products [256]poly
	sum      poly
}

// reduction is what the byte that a shift by eight powers pushes out adds at the other end, in the highest 16 bits.
var reduction = makeReduction()

func makeReduction() (out [256]uint64) {
	for i := range out {
		f := poly{0, uint64(i)} //nolint:gosec // below 256
		for range 8 {
			f = f.times()
		}
		out[i] = f.hi
	}
	return out
}

// times multiplies by x, modulo x^128+x^7+x^2+x+1.
func (f poly) times() poly {
	carry := -(f.lo & 1) & 0xE1 << 56
	return poly{f.hi>>1 ^ carry, f.lo>>1 | f.hi<<63}
}

// start sets the element and empties the sum.
func (g *ghash) start(h *[16]byte) {
	f := poly{binary.BigEndian.Uint64(h[0:]), binary.BigEndian.Uint64(h[8:])}
	g.products[0] = poly{}
	for bit := 128; bit > 0; bit >>= 1 {
		g.products[bit] = f
		f = f.times()
	}
	for bit := 2; bit < 256; bit <<= 1 {
		for low := 1; low < bit; low++ {
			a, b := g.products[bit], g.products[low]
			g.products[bit|low] = poly{a.hi ^ b.hi, a.lo ^ b.lo}
		}
	}
	g.sum = poly{}
}

// multiply takes the sum times the element, byte by byte from the highest power.
func (g *ghash) multiply() {
	x := g.sum
	var out poly
	for range 8 {
		out = g.step(out, byte(x.lo))
		x.lo >>= 8
	}
	for range 8 {
		out = g.step(out, byte(x.hi))
		x.hi >>= 8
	}
	g.sum = out
}

func (g *ghash) step(f poly, b byte) poly {
	p := &g.products[b]
	out := byte(f.lo)
	return poly{f.hi>>8 ^ reduction[out] ^ p.hi, f.lo>>8 | f.hi<<56 ^ p.lo}
}

// add takes in data, padded with zeros to whole blocks.
func (g *ghash) add(data []byte) {
	for ; len(data) >= 16; data = data[16:] {
		g.sum.hi ^= binary.BigEndian.Uint64(data)
		g.sum.lo ^= binary.BigEndian.Uint64(data[8:])
		g.multiply()
	}
	if len(data) > 0 {
		var block [16]byte
		copy(block[:], data)
		g.sum.hi ^= binary.BigEndian.Uint64(block[:])
		g.sum.lo ^= binary.BigEndian.Uint64(block[8:])
		g.multiply()
	}
}

// open checks the tag of 16 bytes behind sealed and then deciphers sealed in its place (SP 800-38D 7.2). It returns nil
// when the tag is another; then sealed is as it was.
func (a *aes128) open(g *ghash, nonce *[12]byte, sealed, extra []byte) []byte {
	if len(sealed) < 16 {
		return nil
	}
	body, tag := sealed[:len(sealed)-16], sealed[len(sealed)-16:]
	var counter, block [16]byte
	a.encrypt(&block, &counter)
	g.start(&block)
	g.add(extra)
	g.add(body)
	g.sum.hi ^= uint64(len(extra)) * 8
	g.sum.lo ^= uint64(len(body)) * 8
	g.multiply()
	copy(counter[:], nonce[:])
	counter[15] = 1
	a.encrypt(&block, &counter)
	var want [16]byte
	binary.BigEndian.PutUint64(want[0:], g.sum.hi^binary.BigEndian.Uint64(block[0:]))
	binary.BigEndian.PutUint64(want[8:], g.sum.lo^binary.BigEndian.Uint64(block[8:]))
	if subtle.ConstantTimeCompare(want[:], tag) != 1 {
		return nil
	}
	for at, n := 0, uint32(2); at < len(body); at, n = at+16, n+1 {
		binary.BigEndian.PutUint32(counter[12:], n)
		a.encrypt(&block, &counter)
		part := body[at:min(at+16, len(body))]
		if len(part) < 16 {
			subtle.XORBytes(part, part, block[:])
			break
		}
		binary.LittleEndian.PutUint64(part, binary.LittleEndian.Uint64(part)^binary.LittleEndian.Uint64(block[:]))
		binary.LittleEndian.PutUint64(part[8:], binary.LittleEndian.Uint64(part[8:])^binary.LittleEndian.Uint64(block[8:]))
	}
	return body
}
