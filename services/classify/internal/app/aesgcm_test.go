package app

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"math/rand/v2"
	"testing"
)

// TestAESGCM compares with the standard library over keys, nonces and lengths.
func TestAESGCM(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	var a aes128
	var g ghash
	for i := range 500 {
		key, nonce, extra, plain := random(16), [12]byte(random(12)), random(r.IntN(70)), random(i*3)
		block, err := aes.NewCipher(key)
		if err != nil {
			t.Fatal(err)
		}
		a.expand(key)
		in := [16]byte(random(16))
		var got, want [16]byte
		a.encrypt(&got, &in)
		block.Encrypt(want[:], in[:])
		if got != want {
			t.Fatalf("a block: % x, want % x", got, want)
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			t.Fatal(err)
		}
		sealed := aead.Seal(nil, nonce[:], plain, extra)
		damaged := bytes.Clone(sealed)
		damaged[r.IntN(len(damaged))] ^= 1 << r.IntN(8)
		if a.open(&g, &nonce, damaged, extra) != nil {
			t.Fatal("a damaged message opens")
		}
		if got := a.open(&g, &nonce, sealed, extra); got == nil || !bytes.Equal(got, plain) {
			t.Fatalf("%d bytes open to % x, want % x", len(plain), got, plain)
		}
	}
	if a.open(&g, new([12]byte), make([]byte, 15), nil) != nil {
		t.Error("a message without a tag opens")
	}
}
