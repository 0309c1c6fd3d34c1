package persist

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"hash/fnv"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/tidegate-mesh/tidegate/services/persist/internal/sqlstore"
)

// tokens writes and reads the page tokens of one listing: the last row's key after a digest of the listing's
// filters, so that a token with other filters is refused instead of giving a page of something else. Tokens
// are no secret and give no access.
type tokens struct{ digest uint64 }

// newTokens takes the digest of the request without its page token and limit, which may change between pages.
func newTokens(kind string, request proto.Message) tokens {
	m := proto.Clone(request).ProtoReflect()
	for _, field := range []protoreflect.Name{"page_token", "limit"} {
		if f := m.Descriptor().Fields().ByName(field); f != nil {
			m.Clear(f)
		}
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(kind)) // never fails
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.Interface())
	if err == nil {
		_, _ = h.Write(b)
	}
	return tokens{h.Sum64()}
}

// tokenHead is what precedes the id: digest, time and revision.
const tokenHead = 8 + 8 + 4

func (t tokens) write(c sqlstore.Cursor) string {
	b := binary.BigEndian.AppendUint64(nil, t.digest)
	b = binary.BigEndian.AppendUint64(b, uint64(c.TS)) //nolint:gosec // read back the same way
	b = binary.BigEndian.AppendUint32(b, c.Rev)
	return base64.RawURLEncoding.EncodeToString(append(b, c.ID...))
}

func (t tokens) read(s string) (sqlstore.Cursor, error) {
	if s == "" {
		return sqlstore.Cursor{}, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) <= tokenHead || len(b) > tokenHead+maxText*4 || !utf8.Valid(b[tokenHead:]) || bytes.IndexByte(b[tokenHead:], 0) >= 0 {
		return sqlstore.Cursor{}, invalid("page_token is damaged: use next_page_token of the page before as it is")
	}
	if binary.BigEndian.Uint64(b) != t.digest {
		return sqlstore.Cursor{}, invalid("page_token belongs to a listing with other filters: keep the filters while paging")
	}
	return sqlstore.Cursor{
		TS:  int64(binary.BigEndian.Uint64(b[8:])), //nolint:gosec // as written
		Rev: binary.BigEndian.Uint32(b[16:]), ID: string(b[tokenHead:]),
	}, nil
}
