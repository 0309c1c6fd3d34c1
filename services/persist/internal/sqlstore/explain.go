package sqlstore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql/driver"
	"errors"
	"io"
	"io/fs"
	"net"
	"strings"
	"syscall"

	"github.com/go-sql-driver/mysql"
	"github.com/lib/pq"
	"modernc.org/sqlite"
	sqlitelib "modernc.org/sqlite/lib"
)

// Explained is an error of the database with one sentence that says what is wrong and what to do.
type Explained struct {
	Sentence string
	Err      error // in the database's words
}

// Error implements error.
func (e *Explained) Error() string { return e.Sentence + " (" + e.Err.Error() + ")" }

// Unwrap gives the database's error.
func (e *Explained) Unwrap() error { return e.Err }

// Explain says what to do about an error of Open, Insert or Maintain. An error of which nothing more can be said than it says
// itself comes back as it is.
func Explain(err error) error {
	if err == nil {
		return nil
	}
	if s := sentence(err); s != "" {
		return &Explained{Sentence: s, Err: err}
	}
	return err
}

const (
	sayCredentials = "the database refuses the user or the password: correct those of DATABASE_URL, it is tried again by itself"
	sayAbsent      = "the database that DATABASE_URL names is not on the server: create it, or correct the name"
	sayNoAccess    = "the database that DATABASE_URL names is not on the server, or this user may not use it: create it, and grant the user all rights on it"
	sayRights      = "the database user lacks a right: grant it all rights on its own database"
	sayNoServer    = "no database server answers: start it, or correct host and port of DATABASE_URL"
	sayLost        = "the database server ended the connection or does not answer: see that it runs and can be reached"
	sayStarting    = "the database server is starting or stopping: wait, it is tried again"
	sayReadOnly    = "the database is read-only: make it writable, or name the primary server in DATABASE_URL"
	sayReadOnlySQL = "the file of the SQLite database, its folder or the file system is read-only: make it writable for this user"
	sayUnreadable  = "this user may not read a file that DATABASE_URL or DATABASE_PASSWORD_FILE names: give it the right"
	sayFull        = "the disk of the database is full: make room there or lower TIDEGATE_PERSIST_MAX_BYTES, messages wait in JetStream meanwhile"
	sayExpired     = "the certificate of the database server has expired or is not valid yet: renew it, and see that the clocks are right"
	sayAuthority   = "the certificate of the database server is of an authority that is not trusted: name the right one by sslrootcert in DATABASE_URL"
	sayHost        = "the certificate of the database server is for another name: connect by the name in it, or renew it"
	sayNoTLS       = "the database server has no TLS: switch it on there, or set sslmode=disable in DATABASE_URL on a trusted network"
	sayNeedsTLS    = "the database server takes this user with TLS only: set sslmode=verify-full and sslrootcert in DATABASE_URL"
	sayTooMany     = "the database server has no connection left: raise its limit or end other clients"
	sayNotMember   = "no node of the Galera cluster takes queries: bring a majority of the nodes together again"
	sayCorrupt     = "the file is no SQLite database or is damaged: restore it, or move it away and a new one is made"
	sayLocked      = "another program holds the SQLite database locked: end it, one process at a time may write"
)

// sentence is the first that fits: what the server answered, then TLS, files and the network.
func sentence(err error) string {
	if s := postgresSentence(err); s != "" {
		return s
	}
	if s := mysqlSentence(err); s != "" {
		return s
	}
	if s := sqliteSentence(err); s != "" {
		return s
	}
	if s := tlsSentence(err); s != "" {
		return s
	}
	var file sqliteFileError
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return sayFull
	case errors.As(err, &file) && (errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission)):
		return sayReadOnlySQL
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.As(err, &dns),
		errors.As(err, &op) && op.Op == "dial":
		return sayNoServer
	case errors.Is(err, fs.ErrPermission): // after dialling, which a packet filter can forbid
		return sayUnreadable
	case strings.Contains(err.Error(), "the Galera node takes no queries"):
		return sayNotMember
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, mysql.ErrInvalidConn), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, context.DeadlineExceeded), errors.As(err, &op):
		return sayLost
	}
	return ""
}

// postgresSentence goes by SQLSTATE (PostgreSQL's manual, appendix A).
func postgresSentence(err error) string {
	var e *pq.Error
	if !errors.As(err, &e) {
		if errors.Is(err, pq.ErrSSLNotSupported) {
			return sayNoTLS
		}
		return ""
	}
	switch e.Code {
	case "28P01":
		return sayCredentials
	case "28000": // no line of pg_hba.conf fits
		if strings.Contains(e.Message, "no encryption") || strings.Contains(e.Message, "SSL off") {
			return sayNeedsTLS
		}
		return sayCredentials
	case "3D000":
		return sayAbsent
	case "42501":
		return sayRights
	case "25006":
		return sayReadOnly
	case "0A000": // a standby asked to begin a transaction that writes
		if strings.Contains(e.Message, "during recovery") {
			return sayReadOnly
		}
	case "53100":
		return sayFull
	case "53300":
		return sayTooMany
	case "57P01", "57P02", "57P03":
		return sayStarting
	}
	return ""
}

// mysqlSentence goes by the error numbers of MySQL and MariaDB.
func mysqlSentence(err error) string {
	var e *mysql.MySQLError
	if !errors.As(err, &e) {
		if errors.Is(err, mysql.ErrNoTLS) {
			return sayNoTLS
		}
		return ""
	}
	switch e.Number {
	case 1045, 1698: // ER_ACCESS_DENIED_ERROR, and without a password
		return sayCredentials
	case 1049: // ER_BAD_DB_ERROR
		return sayAbsent
	case 1044: // ER_DBACCESS_DENIED_ERROR, also for a database that is not there
		return sayNoAccess
	case 1142, 1143, 1227: // ER_TABLEACCESS_DENIED_ERROR, ER_COLUMNACCESS_DENIED_ERROR, ER_SPECIFIC_ACCESS_DENIED_ERROR
		return sayRights
	case 1290, 1792, 1836: // ER_OPTION_PREVENTS_STATEMENT, ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION, ER_READ_ONLY_MODE
		return sayReadOnly
	case 1021, 1114: // ER_DISK_FULL, ER_RECORD_FILE_FULL
		return sayFull
	case 1040, 1203: // ER_CON_COUNT_ERROR, ER_TOO_MANY_USER_CONNECTIONS
		return sayTooMany
	case 1047: // ER_UNKNOWN_COM_ERROR: a Galera node without the others
		return sayNotMember
	case 1053: // ER_SERVER_SHUTDOWN
		return sayStarting
	case 3159: // ER_SECURE_TRANSPORT_REQUIRED
		return sayNeedsTLS
	}
	return ""
}

// sqliteFileError is of the file or its folder, before SQLite opens it.
type sqliteFileError struct{ error }

// Unwrap gives the system's error.
func (e sqliteFileError) Unwrap() error { return e.error }

func sqliteSentence(err error) string {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return ""
	}
	switch e.Code() & 0xff { // the extended codes have the primary one in the low byte
	case sqlitelib.SQLITE_READONLY, sqlitelib.SQLITE_CANTOPEN, sqlitelib.SQLITE_PERM:
		return sayReadOnlySQL
	case sqlitelib.SQLITE_FULL:
		return sayFull
	case sqlitelib.SQLITE_NOTADB, sqlitelib.SQLITE_CORRUPT:
		return sayCorrupt
	case sqlitelib.SQLITE_BUSY, sqlitelib.SQLITE_LOCKED:
		return sayLocked
	}
	return ""
}

func tlsSentence(err error) string {
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return sayExpired
	case errors.As(err, &invalid), errors.As(err, &authority):
		return sayAuthority
	case errors.As(err, &host):
		return sayHost
	case errors.As(err, &record):
		return sayNoTLS
	}
	return ""
}
