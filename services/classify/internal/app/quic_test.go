package app

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/packet"
)

// TestQUICKeys checks the derivation against the vectors of RFC 9001 A.1 and RFC 9369 A.1.
func TestQUICKeys(t *testing.T) {
	dcid, _ := hex.DecodeString("8394c8f03e515708")
	for _, tt := range []struct {
		version       uint32
		key, iv, mask string
	}{
		{quicV1, "1f369613dd76d5467730efcbe3b1a22d", "fa044b2f42a3fd3b46fb255c", "9f50449e04a0e810283a1e9933adedd2"},
		{quicV2, "8b1a0bc121284290a29e0971b5cd045d", "91f73e2351d8fa91660e909f", "45b95e15235d6f45a6b19cbcb0294ba9"},
	} {
		key, iv, mask := secretOf(tt.version).client(dcid)
		if hex.EncodeToString(key[:16]) != tt.key || hex.EncodeToString(iv[:12]) != tt.iv || hex.EncodeToString(mask[:16]) != tt.mask {
			t.Errorf("version %#x: key %x, iv %x, mask %x", tt.version, key[:16], iv[:12], mask[:16])
		}
	}
}

// TestExpandLabel compares the derivation with crypto/hkdf.
func TestExpandLabel(t *testing.T) {
	for _, name := range []string{"client in", "quic key", "quicv2 hp"} {
		secret := sha256.Sum256([]byte(name))
		info := append(wire16(nil, 32), byte(6+len(name)))
		info = append(append(info, "tls13 "+name...), 0)
		want, err := hkdf.Expand(sha256.New, secret[:], string(info), 32)
		if err != nil {
			t.Fatal(err)
		}
		if got := expandLabel(secret, name, 32); !bytes.Equal(got[:], want) {
			t.Errorf("%s: %x, want %x", name, got, want)
		}
	}
}

func appendVarint(b []byte, v int) []byte { return wire16(b, v|0x4000) }

func cryptoFrame(offset int, data []byte) []byte {
	return append(appendVarint(appendVarint([]byte{6}, offset), len(data)), data...)
}

// initialPacket builds a client's Initial packet of 1,200 bytes or what the frames take.
func initialPacket(version uint32, dcid []byte, number uint32, frames []byte) []byte {
	return initialWithKeys(version, dcid, dcid, number, frames)
}

// initialWithKeys is initialPacket with keys of another connection id, as after the server's first answer.
func initialWithKeys(version uint32, keyID, dcid []byte, number uint32, frames []byte) []byte {
	kind := byte(quicInitial)
	if version == quicV2 {
		kind = 1
	}
	b := binary.BigEndian.AppendUint32([]byte{0xC3 | kind<<4}, version)
	b = append(append(b, byte(len(dcid))), dcid...)
	b = append(b, 3, 7, 7, 7)
	b = append(b, 5, 't', 'o', 'k', 'e', 'n')
	plain := append([]byte{}, frames...)
	for len(b)+2+4+len(plain)+16 < 1200 {
		plain = append(plain, 0)
	}
	b = appendVarint(b, 4+len(plain)+16)
	at := len(b)
	b = binary.BigEndian.AppendUint32(b, number)
	key, iv, mask := secretOf(version).client(keyID)
	block, err := aes.NewCipher(key[:16])
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	nonce := iv[:12]
	for i, c := range binary.BigEndian.AppendUint32(nil, number) {
		nonce[8+i] ^= c
	}
	b = aead.Seal(b, nonce, plain, b)
	hp, err := aes.NewCipher(mask[:16])
	if err != nil {
		panic(err)
	}
	var m [16]byte
	hp.Encrypt(m[:], b[at+4:at+20])
	b[0] ^= m[0] & 0x0F
	for i := range 4 {
		b[at+i] ^= m[1+i]
	}
	return b
}

func TestQUICVersions(t *testing.T) {
	dcid := []byte{1, 2, 3, 4, 5, 6, 7, 8}
	want := Result{App: "quic", Host: "www.example.org", ALPN: "h3", Final: true}
	for _, version := range []uint32{quicV1, quicV2, quicDraft | 22, quicDraft | 27, quicDraft | 28, quicDraft | 29, quicDraft | 32,
		quicDraft | 33, quicDraft | 34, quicMvfst | 2, quicT050, quicT051} {
		b := initialPacket(version, dcid, 0, cryptoFrame(0, clientHelloMessage("www.example.org", "h3", 0)))
		same(t, fmt.Sprintf("version %#x", version), play(NewEngine(), key(udp, 40000, 4433), part{0, 0, b}), want)
	}
}

func TestQUICReassembly(t *testing.T) {
	dcid := []byte{1, 2, 3, 4, 5, 6, 7, 8}
	hello := clientHelloMessage("www.example.org", "h3", 1800)
	want := Result{App: "quic", Host: "www.example.org", ALPN: "h3", Final: true}
	a := cryptoFrame(0, hello[:700])
	b := cryptoFrame(700, hello[700:1500])
	c := cryptoFrame(1500, hello[1500:])
	ping := []byte{1, 0, 0, 2, 0, 0, 0, 0} // PING, PADDING, ACK
	first := initialPacket(quicV1, dcid, 0, append(append([]byte{}, ping...), a...))
	second := initialWithKeys(quicV1, dcid, []byte{9, 9, 9, 9}, 1, append(append([]byte{}, c...), ping...))
	third := initialWithKeys(quicV1, dcid, []byte{9, 9, 9, 9}, 2, b)
	answer := append([]byte{0xC1, 0, 0, 0, 1, 3, 7, 7, 7, 4, 9, 9, 9, 9, 0}, append(appendVarint(nil, 60), make([]byte, 60)...)...)
	for name, parts := range map[string][]part{
		"in order":          {{0, 0, first}, {1, 0, answer}, {0, 0, third}, {0, 0, second}},
		"shuffled":          {{0, 0, first}, {0, 0, second}, {1, 0, answer}, {0, 0, third}},
		"server seen first": {{1, 0, answer}, {0, 0, first}, {0, 0, second}, {0, 0, third}},
		"repeated":          {{0, 0, first}, {0, 0, first}, {0, 0, second}},
	} {
		w := want
		if name == "repeated" {
			w = Result{App: "quic", Host: "www.example.org", ALPN: "h3"} // names come before the padding that is missing
		}
		same(t, name, play(NewEngine(), key(udp, 40000, 443), parts...), w)
	}
	// The client may be the flow's destination, when the capture began late.
	small := initialPacket(quicV1, dcid, 0, cryptoFrame(0, clientHelloMessage("www.example.org", "h3", 0)))
	same(t, "client is the destination", play(NewEngine(), key(udp, 443, 40000), part{1, 0, small}), want)
	// Coalesced packets (RFC 9000 12.2): the Initial is the second.
	zero := append([]byte{0xD0, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0}, append(appendVarint(nil, 40), make([]byte, 40)...)...)
	same(t, "coalesced", play(NewEngine(), key(udp, 40000, 443), part{0, 0, append(zero, small...)}), want)
}

func TestQUICShapes(t *testing.T) {
	label := Result{App: "quic"}
	chlo := append([]byte{0x0D, 1, 2, 3, 4, 5, 6, 7, 8, 'Q', '0', '4', '3', 1}, make([]byte, 12)...)
	chlo = append(chlo, 0xA0, 1, 0, 0)
	chlo = append(chlo, "CHLO\x02\x00\x00\x00PAD\x00\x04\x00\x00\x00SNI\x00\x0f\x00\x00\x00----example.org"...)
	q46 := append([]byte{0xC3, 'Q', '0', '4', '6', 0x50, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1}, make([]byte, 12)...)
	q46 = append(q46, chlo[26:]...)
	negotiation := append([]byte{0x80, 0, 0, 0, 0, 4, 1, 2, 3, 4, 0}, 0xFF, 0, 0, 29, 0, 0, 0, 1)
	unread := initialPacket(quicV1, []byte{1, 2, 3, 4, 5, 6, 7, 8}, 0, nil)
	unread[len(unread)-1]++
	check(t, []one{
		{"gquic", udp, 1, 443, chlo, Result{App: "quic", Host: "example.org", Final: true}},
		{"gquic long header", udp, 1, 443, q46, Result{App: "quic", Host: "example.org", Final: true}},
		{"version negotiation", udp, 443, 1, negotiation, label},
		{"negotiation of nothing known", udp, 443, 1, append(negotiation[:11:11], 1, 2, 3, 4), unknown},
		{"handshake packet", udp, 443, 1, append([]byte{0xE0, 0, 0, 0, 1, 0, 4, 1, 2, 3, 4, 0x40, 30}, make([]byte, 30)...), label},
		{"retry", udp, 443, 1, append([]byte{0xF0, 0, 0, 0, 1, 0, 4, 1, 2, 3, 4}, make([]byte, 40)...), label},
		{"cannot be decrypted", udp, 1, 443, unread, label},
		{"cut by the capture", udp, 1, 443, unread[:300], label},
		{"unknown version", udp, 1, 443, append([]byte{0xC0, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0x40, 30}, make([]byte, 30)...), unknown},
		{"long connection id", udp, 1, 443, append([]byte{0xC0, 0, 0, 0, 1, 21}, make([]byte, 60)...), unknown},
		{"short header alone", udp, 1, 443, append([]byte{0x40}, make([]byte, 60)...), unknown},
		{"on tcp", packet.ProtoTCP, 1, 443, unread, unknown},
	})
}

func FuzzQUIC(f *testing.F) {
	dcid := []byte{1, 2, 3, 4, 5, 6, 7, 8}
	small := initialPacket(quicV1, dcid, 0, cryptoFrame(0, clientHelloMessage("www.example.org", "h3", 0)))
	fuzz(f, small, initialPacket(quicV2, dcid, 3, cryptoFrame(100, []byte("x"))),
		append([]byte{0x80, 0, 0, 0, 0, 4, 1, 2, 3, 4, 0}, 0xFF, 0, 0, 29), append([]byte{0xC3, 'Q', '0', '4', '6', 0x50}, "CHLO"...))
}

// FuzzQUICFrames skips the encryption, which no mutation gets past.
func FuzzQUICFrames(f *testing.F) {
	f.Add(cryptoFrame(0, clientHelloMessage("www.example.org", "h3", 0)))
	f.Add([]byte{2, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 0, 1, 1, 1, 6, 0, 1, 'x'})
	f.Fuzz(func(t *testing.T, frames []byte) {
		var q quicState
		q.frames(frames)
		var h hello
		h.parse(q.crypto[:q.pieces.prefix()])
		googleHello(&Flow{engine: NewEngine()}, frames)
	})
}
