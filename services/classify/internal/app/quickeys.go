package app

import (
	"crypto/sha256"
	"encoding/binary"
)

// quicSecret is how a version derives the secrets of Initial packets.
type quicSecret struct {
	salt          [20]byte
	key, iv, mask string // labels of HKDF-Expand-Label
}

var (
	// RFC 9001 5.2.
	quicSecretV1 = quicSecret{
		salt: [20]byte{0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f, 0x0a},
		key:  "quic key", iv: "quic iv", mask: "quic hp",
	}
	// RFC 9369 3.3.
	quicSecretV2 = quicSecret{
		salt: [20]byte{0x0d, 0xed, 0xe3, 0xde, 0xf7, 0x00, 0xa6, 0xdb, 0x81, 0x93, 0x81, 0xbe, 0x6e, 0x26, 0x9d, 0xcb, 0xf9, 0xbd, 0x2e, 0xd9},
		key:  "quicv2 key", iv: "quicv2 iv", mask: "quicv2 hp",
	}
	// draft-ietf-quic-tls-29 5.2, for drafts 29 to 32.
	quicSecret29 = quicSecret{
		salt: [20]byte{0xaf, 0xbf, 0xec, 0x28, 0x99, 0x93, 0xd2, 0x4c, 0x9e, 0x97, 0x86, 0xf1, 0x9c, 0x61, 0x11, 0xe0, 0x43, 0x90, 0xa8, 0x99},
		key:  "quic key", iv: "quic iv", mask: "quic hp",
	}
	// draft-ietf-quic-tls-22 5.2.
	quicSecret22 = quicSecret{
		salt: [20]byte{0x7f, 0xbc, 0xdb, 0x0e, 0x7c, 0x66, 0xbb, 0xe9, 0x19, 0x3a, 0x96, 0xcd, 0x21, 0x51, 0x9e, 0xbd, 0x7a, 0x02, 0x64, 0x4a},
		key:  "quic key", iv: "quic iv", mask: "quic hp",
	}
	// draft-ietf-quic-tls-23 5.2, for drafts 23 to 28.
	quicSecret23 = quicSecret{
		salt: [20]byte{0xc3, 0xee, 0xf7, 0x12, 0xc7, 0x2e, 0xbb, 0x5a, 0x11, 0xa7, 0xd2, 0x43, 0x2b, 0xb4, 0x63, 0x65, 0xbe, 0xf9, 0xf5, 0x02},
		key:  "quic key", iv: "quic iv", mask: "quic hp",
	}
)

// Google's versions of 2020 (Chromium, quiche/quic/core/crypto/crypto_utils.cc).
var (
	quicSecretQ050 = quicSecret{
		salt: [20]byte{0x50, 0x45, 0x74, 0xef, 0xd0, 0x66, 0xfe, 0x2f, 0x9d, 0x94, 0x5c, 0xfc, 0xdb, 0xd3, 0xa7, 0xf0, 0xd3, 0xb5, 0x6b, 0x45},
		key:  "quic key", iv: "quic iv", mask: "quic hp",
	}
	quicSecretT050 = quicSecret{
		salt: [20]byte{0x7f, 0xf5, 0x79, 0xe5, 0xac, 0xd0, 0x72, 0x91, 0x55, 0x80, 0x30, 0x4c, 0x43, 0xa2, 0x36, 0x7c, 0x60, 0x48, 0x83, 0x10},
		key:  "quic key", iv: "quic iv", mask: "quic hp",
	}
	quicSecretT051 = quicSecret{
		salt: [20]byte{0x7a, 0x4e, 0xde, 0xf4, 0xe7, 0xcc, 0xee, 0x5f, 0xa4, 0x50, 0x6c, 0x19, 0x12, 0x4f, 0xc8, 0xcc, 0xda, 0x6e, 0x03, 0x3d},
		key:  "quic key", iv: "quic iv", mask: "quic hp",
	}
)

// secretOf chooses by version; nil where the derivation is not known.
func secretOf(version uint32) *quicSecret {
	switch {
	case version == quicV2:
		return &quicSecretV2
	case version == quicV1:
		return &quicSecretV1
	case version&0xFFFFFF00 == quicDraft:
		switch draft := version & 0xFF; {
		case draft >= 33 && draft <= 34:
			return &quicSecretV1
		case draft >= 29 && draft < 33:
			return &quicSecret29
		case draft >= 23 && draft < 29:
			return &quicSecret23
		case draft == 22:
			return &quicSecret22
		}
	case version == quicQ050:
		return &quicSecretQ050
	case version == quicT050:
		return &quicSecretT050
	case version == quicT051:
		return &quicSecretT051
	case version == quicMvfst|0x1: // Facebook's names for drafts 22 and 27, and its experiments on the latter
		return &quicSecret22
	case version == quicMvfst|0x2, version == quicMvfst|0xE:
		return &quicSecret23
	}
	return nil
}

// quicKeys open a client's Initial packets.
type quicKeys struct {
	key, mask aes128
	iv        [12]byte
}

// derive computes the keys from the connection id that the client chose (RFC 9001 5.2).
func (k *quicKeys) derive(version uint32, dcid []byte) bool {
	s := secretOf(version)
	if s == nil {
		return false
	}
	key, iv, mask := s.client(dcid)
	k.iv = [12]byte(iv[:12])
	k.key.expand(key[:16])
	k.mask.expand(mask[:16])
	return true
}

// client derives key, IV and header protection key of the client's Initial packets, in the first 16, 12 and
// 16 bytes.
func (s *quicSecret) client(dcid []byte) (key, iv, mask [32]byte) {
	initial := hmacSHA256(s.salt[:], dcid)
	secret := expandLabel(initial, "client in", 32)
	return expandLabel(secret, s.key, 16), expandLabel(secret, s.iv, 12), expandLabel(secret, s.mask, 16)
}

// open removes header and packet protection (RFC 9001 5.3 and 5.4) of the packet whose number begins at at.
// It returns the frames in dst's memory, which has room for the packet, or nil when the keys are not this
// packet's.
func (k *quicKeys) open(g *ghash, dst, packet []byte, at int) []byte {
	if len(packet) < at+4+16 {
		return nil
	}
	sample := [16]byte(packet[at+4:])
	k.mask.encrypt(&sample, &sample)
	// A copy: the AEAD's associated data is the header without its protection, and the packet is borrowed.
	head := append(dst[:0], packet...)
	head[0] ^= sample[0] & 0x0F
	size := int(head[0]&3) + 1
	number := uint64(0)
	for i := range size {
		head[at+i] ^= sample[1+i]
		number = number<<8 | uint64(head[at+i])
	}
	nonce := k.iv
	for i := range 8 {
		nonce[4+i] ^= byte(number >> (56 - 8*i))
	}
	return k.key.open(g, &nonce, head[at+size:], head[:at+size])
}

// hmacSHA256 is HMAC (RFC 2104) over messages of at most 64 bytes with keys of at most 64 bytes; here it is
// both HKDF-Extract and the one block of HKDF-Expand (RFC 5869), without the allocations of crypto/hkdf.
func hmacSHA256(key, message []byte) [32]byte {
	var inner [128]byte
	var outer [96]byte
	copy(inner[:64], key)
	copy(outer[:64], key)
	for i := range 64 {
		inner[i] ^= 0x36
		outer[i] ^= 0x5C
	}
	n := copy(inner[64:], message)
	sum := sha256.Sum256(inner[:64+n])
	copy(outer[64:], sum[:])
	return sha256.Sum256(outer[:])
}

// expandLabel is HKDF-Expand-Label (RFC 8446 7.1) with an empty context, for up to 32 bytes; the rest of the
// result is to be ignored.
func expandLabel(secret [32]byte, name string, size uint16) [32]byte {
	var info [64]byte
	b := binary.BigEndian.AppendUint16(info[:0], size)
	b = append(b, byte(6+len(name)))
	b = append(b, "tls13 "...)
	b = append(b, name...)
	b = append(b, 0, 1)
	return hmacSHA256(secret[:], b)
}
