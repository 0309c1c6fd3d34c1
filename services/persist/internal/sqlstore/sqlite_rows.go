package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/jmoiron/sqlx"
	"modernc.org/libc"
	sqlitelib "modernc.org/sqlite/lib"
)

// insertFunction is the SQL function that inserts a batch of rows, given by its number, on the connection that calls
// it, and returns how many were new. Through database/sql a row of 37 values costs more than what SQLite does with it;
// the function binds them by SQLite's own API, where they lie.
const insertFunction = "tidegate_insert"

// pending are the batches that statements under way may ask for, by number.
var (
	pending     sync.Map // int64 → *pendingRows
	pendingLast atomic.Int64
)

type pendingRows struct {
	t    Table
	rows []record
}

// registerInsert makes the function known to each connection that is opened afterwards.
var registerInsert = sync.OnceValue(func() error {
	tls := libc.NewTLS()
	defer tls.Close()
	if rc := sqlitelib.Xsqlite3_auto_extension(tls, cFunction(addInsert)); rc != sqlitelib.SQLITE_OK {
		return fmt.Errorf("error %d", rc)
	}
	// SQLite asks for a page of memory each time that it balances a tree, and gives it back. The allocator would get
	// it from the kernel each time, if nothing else of that size were in use.
	if libc.Xmalloc(tls, 4096) == 0 {
		return errors.New("out of memory")
	}
	return nil
})

// addInsert is what SQLite calls for each connection that it opens.
func addInsert(tls *libc.TLS, db, _, _ uintptr) int32 {
	const name = insertFunction + "\x00"
	return sqlitelib.Xsqlite3_create_function_v2(tls, db, textAt(name), 1, sqlitelib.SQLITE_UTF8|sqlitelib.SQLITE_DIRECTONLY, 0, cFunction(insertPending), 0, 0, 0)
}

// cFunction is a function as the translated C code calls it: the address of a Go function value. f is no closure, which
// the garbage collector would free.
func cFunction[T any](f T) uintptr {
	return *(*uintptr)(unsafe.Pointer(&struct{ f T }{f})) //nolint:gosec // the driver does the same
}

// word reads C's memory.
func word(at uintptr) uintptr {
	return **(**uintptr)(unsafe.Pointer(&at)) //nolint:gosec // callers got it from SQLite
}

func (d *sqliteDialect) bulk(ctx context.Context, tx *sqlx.Tx, t Table, rows []record) (inserted int64, err error) {
	number := pendingLast.Add(1)
	pending.Store(number, &pendingRows{t, rows})
	defer pending.Delete(number)
	err = tx.GetContext(ctx, &inserted, "SELECT "+insertFunction+"(?)", number)
	return inserted, err
}

// insertPending is insertFunction: ctx is the call's, argv its one argument.
func insertPending(tls *libc.TLS, ctx uintptr, _ int32, argv uintptr) {
	number := sqlitelib.Xsqlite3_value_int64(tls, word(argv))
	db := sqlitelib.Xsqlite3_context_db_handle(tls, ctx)
	p, ok := pending.Load(number)
	before := sqlitelib.Xsqlite3_total_changes64(tls, db)
	err := fmt.Errorf("no batch has number %d", number)
	if ok {
		err = p.(*pendingRows).insert(tls, db) //nolint:forcetypeassert // nothing else is stored
	}
	if err != nil {
		code := int32(sqlitelib.SQLITE_ERROR)
		var e *sqliteError
		if errors.As(err, &e) {
			code = e.code
		}
		text := err.Error()
		sqlitelib.Xsqlite3_result_error(tls, ctx, textAt(text), int32(len(text))) //nolint:gosec // short
		sqlitelib.Xsqlite3_result_error_code(tls, ctx, code)                      // after the text, which it keeps
		runtime.KeepAlive(text)
		return
	}
	sqlitelib.Xsqlite3_result_int64(tls, ctx, sqlitelib.Xsqlite3_total_changes64(tls, db)-before)
}

// insert adds the rows one by one; those that are there already stay as they are. SQLite can undo a statement of
// several rows, for which it would copy each page before the statement's first change to it.
func (p *pendingRows) insert(tls *libc.TLS, db uintptr) error {
	query := multiRow(p.t, 1)
	out := tls.Alloc(int(unsafe.Sizeof(uintptr(0))))
	defer tls.Free(int(unsafe.Sizeof(uintptr(0))))
	rc := sqlitelib.Xsqlite3_prepare_v2(tls, db, textAt(query), int32(len(query)), out, 0) //nolint:gosec // short
	runtime.KeepAlive(query)
	if rc != sqlitelib.SQLITE_OK {
		return lastError(tls, db)
	}
	stmt := word(out)
	defer sqlitelib.Xsqlite3_finalize(tls, stmt) // repeats the error of the last step
	b := parameters{tls: tls, stmt: stmt, bound: make([]bound, len(columns[p.t]))}
	for _, r := range p.rows {
		b.next = 0
		r.put(&b)
		if b.err != nil {
			return b.err
		}
		if sqlitelib.Xsqlite3_step(tls, stmt) != sqlitelib.SQLITE_DONE {
			return lastError(tls, db)
		}
		if sqlitelib.Xsqlite3_reset(tls, stmt) != sqlitelib.SQLITE_OK {
			return lastError(tls, db)
		}
	}
	runtime.KeepAlive(b.bound)
	return nil
}

// parameters are those of a statement; a row puts its values into them. A parameter that has its value already, as most
// have from row to row, stays bound.
type parameters struct {
	tls   *libc.TLS
	stmt  uintptr
	next  int
	bound []bound
	err   error
}

// bound is what a parameter is bound to. SQLite reads text and address where they are, until others are bound.
type bound struct {
	kind    kind
	num     int64
	text    string
	address [16]byte
}

type kind uint8

const (
	numKind kind = iota + 1
	textKind
	addressKind
	nullKind
	otherKind
)

// take moves on to the next parameter. same says whether the one that it returns was of the kind.
func (p *parameters) take(k kind) (b *bound, i int32, same bool) {
	if p.next == len(p.bound) { // one too many, which SQLite refuses
		p.next++
		return new(bound), int32(p.next), false //nolint:gosec // some dozens
	}
	b = &p.bound[p.next]
	p.next++
	same = b.kind == k
	b.kind = k
	return b, int32(p.next), same //nolint:gosec // some dozens
}

func (p *parameters) check(rc int32) {
	if rc != sqlitelib.SQLITE_OK && p.err == nil {
		p.err = &sqliteError{fmt.Sprintf("value %d is not taken", p.next), rc}
	}
}

func (p *parameters) num(n int64) {
	if b, i, same := p.take(numKind); !same || b.num != n {
		b.num = n
		p.check(sqlitelib.Xsqlite3_bind_int64(p.tls, p.stmt, i, n))
	}
}

func (p *parameters) text(s string) {
	if b, i, same := p.take(textKind); !same || b.text != s {
		b.text = s
		p.check(sqlitelib.Xsqlite3_bind_text64(p.tls, p.stmt, i, textAt(s), uint64(len(s)), sqlitelib.SQLITE_STATIC, sqlitelib.SQLITE_UTF8))
	}
}

// addr binds 16 bytes; none for no address, which fails the length check.
func (p *parameters) addr(a netip.Addr) {
	b, i, same := p.take(addressKind)
	size := uint64(len(b.address))
	if !a.IsValid() {
		b.kind, size, same = otherKind, 0, false
	} else {
		b.address = a.As16()
	}
	if !same {
		p.check(sqlitelib.Xsqlite3_bind_blob64(p.tls, p.stmt, i, uintptr(unsafe.Pointer(&b.address)), size, sqlitelib.SQLITE_STATIC)) //nolint:gosec // see bound
	}
}

func (p *parameters) float(f float64) {
	_, i, _ := p.take(otherKind)
	p.check(sqlitelib.Xsqlite3_bind_double(p.tls, p.stmt, i, f))
}

func (p *parameters) flag(b bool) {
	if b {
		p.num(1)
	} else {
		p.num(0)
	}
}

func (p *parameters) numOrNull(n sql.NullInt64) {
	if n.Valid {
		p.num(n.Int64)
		return
	}
	p.null()
}

func (p *parameters) textOrNull(s sql.NullString) {
	if s.Valid {
		p.text(s.String)
		return
	}
	p.null()
}

func (p *parameters) null() {
	if _, i, same := p.take(nullKind); !same {
		p.check(sqlitelib.Xsqlite3_bind_null(p.tls, p.stmt, i))
	}
}

// textAt is where a text lies: never 0, which would be NULL to SQLite.
func textAt(s string) uintptr {
	if s == "" {
		s = " "
	}
	return uintptr(unsafe.Pointer(unsafe.StringData(s))) //nolint:gosec // callers keep s
}

// sqliteError is an error of SQLite's API, on its way to the caller of insertFunction.
type sqliteError struct {
	text string
	code int32 // extended
}

func (e *sqliteError) Error() string { return e.text }

func lastError(tls *libc.TLS, db uintptr) error {
	return &sqliteError{libc.GoString(sqlitelib.Xsqlite3_errmsg(tls, db)), sqlitelib.Xsqlite3_extended_errcode(tls, db)}
}
