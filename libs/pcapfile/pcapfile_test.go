package pcapfile

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/tidegate-mesh/tidegate/libs/pcapfile/corpustest"
)

// all reads every record; Data is copied.
func all(t testing.TB, in io.Reader) ([]Record, error) {
	t.Helper()
	r, err := NewReader(in)
	if err != nil {
		return nil, err
	}
	var out []Record
	for {
		rec, err := r.Next(nil)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		rec.Data = bytes.Clone(rec.Data)
		out = append(out, rec)
	}
}

func classic(order binary.ByteOrder, magic uint32, link uint32, records ...[]byte) []byte {
	b := make([]byte, 24)
	order.PutUint32(b, magic)
	order.PutUint16(b[4:], 2)
	order.PutUint16(b[6:], 4)
	order.PutUint32(b[16:], 65535)
	order.PutUint32(b[20:], link)
	for i, data := range records {
		var h [16]byte
		order.PutUint32(h[0:], uint32(100+i))
		order.PutUint32(h[4:], 5)
		order.PutUint32(h[8:], uint32(len(data)))
		order.PutUint32(h[12:], uint32(len(data)+1))
		b = append(append(b, h[:]...), data...)
	}
	return b
}

// block builds one pcapng block around body.
func block(order binary.ByteOrder, kind uint32, body []byte) []byte {
	for len(body)%4 != 0 {
		body = append(body, 0)
	}
	b := make([]byte, 8, 12+len(body))
	order.PutUint32(b, kind)
	order.PutUint32(b[4:], uint32(12+len(body)))
	b = append(b, body...)
	var end [4]byte
	order.PutUint32(end[:], uint32(12+len(body)))
	return append(b, end[:]...)
}

func section(order binary.ByteOrder) []byte {
	body := make([]byte, 16)
	order.PutUint32(body, 0x1A2B3C4D)
	order.PutUint16(body[4:], 1)
	for i := 8; i < 16; i++ {
		body[i] = 0xFF
	}
	return block(order, blockSection, body)
}

func description(order binary.ByteOrder, link uint16, snap uint32, options ...byte) []byte {
	body := make([]byte, 8)
	order.PutUint16(body, link)
	order.PutUint32(body[4:], snap)
	return block(order, blockInterface, append(body, options...))
}

func enhanced(order binary.ByteOrder, id uint32, ticks uint64, data []byte) []byte {
	body := make([]byte, 20)
	order.PutUint32(body, id)
	order.PutUint32(body[4:], uint32(ticks>>32))
	order.PutUint32(body[8:], uint32(ticks))
	order.PutUint32(body[12:], uint32(len(data)))
	order.PutUint32(body[16:], uint32(len(data)))
	return block(order, blockEnhanced, append(body, data...))
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestReadFormats(t *testing.T) {
	le, be := binary.ByteOrder(binary.LittleEndian), binary.ByteOrder(binary.BigEndian)
	data := []byte("frame")
	simple := func(order binary.ByteOrder) []byte {
		body := make([]byte, 4)
		order.PutUint32(body, 9)
		return block(order, blockSimple, append(body, "abcdefghi"...))
	}
	offset := binary.LittleEndian.AppendUint64([]byte{optionTsOffset, 0, 8, 0}, 1000)
	tests := []struct {
		name string
		file []byte
		want []Record
	}{
		{"microseconds little-endian", classic(le, 0xA1B2C3D4, 1, data), []Record{{100*1e9 + 5000, 1, data, 6}}},
		{"microseconds big-endian", classic(be, 0xA1B2C3D4, 1, data), []Record{{100*1e9 + 5000, 1, data, 6}}},
		{"nanoseconds little-endian", classic(le, 0xA1B23C4D, 101, data), []Record{{100*1e9 + 5, 101, data, 6}}},
		{"nanoseconds big-endian", classic(be, 0xA1B23C4D, 101, data), []Record{{100*1e9 + 5, 101, data, 6}}},
		{"frame check length in link type", classic(le, 0xA1B2C3D4, 0x14000001, data), []Record{{100*1e9 + 5000, 1, data, 6}}},
		{"pcapng microseconds", join(section(le), description(le, 1, 0), enhanced(le, 0, 1_500_000, data)),
			[]Record{{1_500_000_000, 1, data, 5}}},
		{"pcapng big-endian", join(section(be), description(be, 1, 0), enhanced(be, 0, 1_500_000, data)),
			[]Record{{1_500_000_000, 1, data, 5}}},
		{"pcapng interfaces with their own clocks", join(section(le),
			description(le, 1, 0, optionTsResol, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0),
			description(le, 113, 0, optionTsResol, 0, 1, 0, 0x80|10, 0, 0, 0),
			description(le, 101, 0, offset...),
			enhanced(le, 1, 1536, data), enhanced(le, 0, 7, data), enhanced(le, 2, 1, data)),
			[]Record{{1_500_000_000, 113, data, 5}, {7, 1, data, 5}, {1000*1e9 + 1000, 101, data, 5}}},
		{"pcapng sections of both byte orders", join(section(le), description(le, 1, 0), enhanced(le, 0, 1, data),
			section(be), description(be, 101, 0), enhanced(be, 0, 2, data)),
			[]Record{{1000, 1, data, 5}, {2000, 101, data, 5}}},
		{"pcapng simple packet", join(section(le), description(le, 1, 4), enhanced(le, 0, 1, data), simple(le)),
			[]Record{{1000, 1, data, 5}, {1000, 1, []byte("abcd"), 9}}},
		{"pcapng unknown block", join(section(le), description(le, 1, 0), block(le, 0xBAD, make([]byte, 100)), enhanced(le, 0, 1, data)),
			[]Record{{1000, 1, data, 5}}},
		{"no record", classic(le, 0xA1B2C3D4, 1), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var zipped bytes.Buffer
			z := gzip.NewWriter(&zipped)
			if _, err := z.Write(tt.file); err != nil {
				t.Fatal(err)
			}
			if err := z.Close(); err != nil {
				t.Fatal(err)
			}
			for form, in := range map[string]io.Reader{"plain": bytes.NewReader(tt.file), "gzip": &zipped} {
				got, err := all(t, in)
				if err != nil {
					t.Fatalf("%s: %v", form, err)
				}
				if d := cmp.Diff(tt.want, got); d != "" {
					t.Errorf("%s: %s", form, d)
				}
			}
		})
	}
}

func TestBadFiles(t *testing.T) {
	le := binary.ByteOrder(binary.LittleEndian)
	data := []byte("frame")
	whole := classic(le, 0xA1B2C3D4, 1, data, data)
	huge := classic(le, 0xA1B2C3D4, 1, data)
	le.PutUint32(huge[24+8:], 0xFFFFFFF0)
	lying := classic(le, 0xA1B2C3D4, 1, data)
	le.PutUint32(lying[24+8:], MaxRecord)
	ng := join(section(le), description(le, 1, 0), enhanced(le, 0, 1, data))
	mismatch := bytes.Clone(ng)
	mismatch[len(mismatch)-4]++
	tests := []struct {
		name    string
		file    []byte
		records int
		is      error
		says    string
	}{
		{"empty", nil, 0, io.ErrUnexpectedEOF, "magic"},
		{"not a capture", []byte("hello, world"), 0, ErrFormat, "neither pcap nor pcapng"},
		{"ends in file header", whole[:20], 0, io.ErrUnexpectedEOF, "file header"},
		{"ends in record header", whole[:24+16+5+3], 1, io.ErrUnexpectedEOF, "after 1 records"},
		{"ends in record", whole[:len(whole)-1], 1, io.ErrUnexpectedEOF, "record data"},
		{"huge record", huge, 0, ErrFormat, "at most"},
		{"length that lies", lying, 0, io.ErrUnexpectedEOF, "record data"},
		{"pcapng ends in block", ng[:len(ng)-6], 0, io.ErrUnexpectedEOF, "after 0 records"},
		{"pcapng lengths differ", mismatch, 0, ErrFormat, "ends with"},
		{"pcapng without interface", join(section(le), enhanced(le, 0, 1, data)), 0, ErrFormat, "interface 0"},
		{"gzip header only", []byte{0x1F, 0x8B, 8}, 0, io.ErrUnexpectedEOF, "gzip"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := all(t, bytes.NewReader(tt.file))
			if len(got) != tt.records || !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%d records, error %v; want %d, %v with %q", len(got), err, tt.records, tt.is, tt.says)
			}
		})
	}
}

func TestWriterRoundTrip(t *testing.T) {
	var file bytes.Buffer
	w, err := NewWriter(&file, 1, 4)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write(1_700_000_000_123_456_789, []byte("abcdef"), 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Write(5, nil, 60); err != nil {
		t.Fatal(err)
	}
	if err := w.Write(-1, nil, 0); err == nil {
		t.Error("a time before 1970 was accepted")
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	got, err := all(t, &file)
	if err != nil {
		t.Fatal(err)
	}
	want := []Record{{1_700_000_000_123_456_789, 1, []byte("abcd"), 6}, {5, 1, []byte{}, 60}}
	for i := range got {
		if got[i].TimeNs != want[i].TimeNs || !bytes.Equal(got[i].Data, want[i].Data) || got[i].WireLen != want[i].WireLen {
			t.Errorf("record %d: %+v, want %+v", i, got[i], want[i])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d records, want %d", len(got), len(want))
	}
}

func TestNextBuffers(t *testing.T) {
	file := classic(binary.LittleEndian, 0xA1B2C3D4, 1, []byte("first"), []byte("second"), []byte("third"))
	r, err := NewReader(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	mine := make([]byte, 0, 100)
	a, err := r.Next(mine)
	if err != nil || &a.Data[0] != &mine[:1][0] {
		t.Fatalf("data is not in the caller's buffer (%v)", err)
	}
	if _, err := r.Next(nil); err != nil {
		t.Fatal(err)
	}
	if string(a.Data) != "first" {
		t.Errorf("a later record wrote into the caller's buffer: %q", a.Data)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestOpenMissing(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "none.pcap")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

// TestCorpus reads every shared capture to its end and compares with gopacket's readers.
func TestCorpus(t *testing.T) {
	dir := corpustest.Dir(t)
	files := corpustest.Captures(t, dir)
	if len(files) < 1000 {
		t.Errorf("%d captures, the corpus has more", len(files))
	}
	total := 0
	for _, path := range files {
		r, err := Open(path)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		oracle := openOracle(path)
		for {
			rec, err := r.Next(nil)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				// A few captures are cut or damaged; then the other reader must have stopped here too.
				agreed := oracle == nil
				if oracle != nil {
					_, _, _, other := oracle()
					agreed = other != nil
				}
				t.Logf("gopacket agrees %v: %v", agreed, err)
				if !agreed {
					t.Errorf("only our reader stops: %v", err)
				}
				break
			}
			total++
			if oracle == nil {
				continue
			}
			data, ns, wireLen, err := oracle()
			if err != nil {
				oracle = nil // the other reader gives up earlier than ours on some files
				continue
			}
			if !bytes.Equal(data, rec.Data) || ns != rec.TimeNs || wireLen != rec.WireLen {
				t.Errorf("%s: record %d: %d bytes at %d of %d, gopacket has %d bytes at %d of %d", path, r.count,
					len(rec.Data), rec.TimeNs, rec.WireLen, len(data), ns, wireLen)
				break
			}
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d captures, %d records", len(files), total)
}

func openOracle(path string) func() ([]byte, int64, int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	if r, err := pcapgo.NewReader(bytes.NewReader(b)); err == nil {
		r.SetSnaplen(0)
		return func() ([]byte, int64, int, error) {
			data, info, err := r.ReadPacketData()
			return data, info.Timestamp.UnixNano(), info.Length, err
		}
	}
	if r, err := pcapgo.NewNgReader(bytes.NewReader(b), pcapgo.NgReaderOptions{WantMixedLinkType: true}); err == nil {
		return func() ([]byte, int64, int, error) {
			data, info, err := r.ReadPacketData()
			return data, info.Timestamp.UnixNano(), info.Length, err
		}
	}
	return nil
}

func FuzzReader(f *testing.F) {
	le, be := binary.ByteOrder(binary.LittleEndian), binary.ByteOrder(binary.BigEndian)
	f.Add(classic(le, 0xA1B2C3D4, 1, []byte("frame"), nil))
	f.Add(classic(be, 0xA1B23C4D, 1, []byte("frame")))
	f.Add(classic(be, 0xA1B2CD34, 1, []byte("frame")))
	f.Add(join(section(le), description(le, 1, 0, optionTsResol, 0, 1, 0, 9, 0, 0, 0), enhanced(le, 0, 1, []byte("x")),
		section(be), description(be, 1, 3), block(be, blockSimple, make([]byte, 12))))
	f.Fuzz(func(t *testing.T, file []byte) {
		got, err := all(t, bytes.NewReader(file))
		if err != nil && !errors.Is(err, ErrFormat) && !errors.Is(err, io.ErrUnexpectedEOF) && file[0] != 0x1F {
			t.Errorf("error without its class: %v", err)
		}
		for _, r := range got {
			if len(r.Data) > MaxRecord {
				t.Errorf("record of %d bytes", len(r.Data))
			}
		}
	})
}
