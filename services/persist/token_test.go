package persist

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
	"github.com/tidegate-mesh/tidegate/services/persist/internal/sqlstore"
)

// FuzzToken reads page tokens as strangers send them: a token is read as it was written, or refused.
func FuzzToken(f *testing.F) {
	t := newTokens("flows", &queryv1.ListFlowsRequest{App: "tls"})
	f.Add(t.write(sqlstore.Cursor{TS: 1, ID: "a/1/2/3", Rev: 7}))
	f.Add(t.write(sqlstore.Cursor{TS: -1, ID: "\xff\x00"}))
	f.Add("")
	f.Add("AAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Fuzz(func(tt *testing.T, s string) {
		c, err := t.read(s)
		if err != nil {
			if status.Code(err) != codes.InvalidArgument {
				tt.Fatalf("%q: %v", s, err)
			}
			return
		}
		if s == "" {
			return
		}
		again, err := t.read(t.write(c))
		if err != nil || again != c {
			tt.Fatalf("%q: %+v became %+v, %v", s, c, again, err)
		}
	})
}
