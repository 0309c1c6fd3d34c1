package sqlstore

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestExplainPermission: a secret that may not be read and a packet filter are not SQLite's file.
func TestExplainPermission(t *testing.T) {
	denied := &fs.PathError{Op: "open", Path: "/etc/tidegate/x", Err: syscall.EACCES}
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("connect to PostgreSQL: read the database password (DATABASE_PASSWORD_FILE): %w", denied), sayUnreadable},
		{fmt.Errorf("connect to MySQL: authority of the database's certificate (sslrootcert): %w", denied), sayUnreadable},
		{&net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.EPERM)}, sayNoServer},
		{fmt.Errorf("open the SQLite database: %w", sqliteFileError{denied}), sayReadOnlySQL},
	} {
		if got := sentence(c.err); got != c.want {
			t.Errorf("%v: %q, want %q", c.err, got, c.want)
		}
	}
}

// TestExplainHidden: an error without its password is explained as before, also when the password is in it by chance.
func TestExplainHidden(t *testing.T) {
	err := fmt.Errorf("connect to PostgreSQL: %w", hide(&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "tidegate-db"}}, "tidegate"))
	if got := sentence(err); got != sayNoServer || strings.Contains(Explain(err).Error(), "tidegate") {
		t.Errorf("%v: %q, want %q", Explain(err), got, sayNoServer)
	}
}
