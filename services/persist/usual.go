package persist

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	"github.com/tidegate-mesh/tidegate/services/persist/internal/sqlstore"
)

var errNoDatabase = errors.New("the database was not reached yet")

// storeUsual keeps what a classifier learned on a day.
func (s *Service) storeUsual(ctx context.Context, d *eventv1.UsualDay) error {
	st := s.store.Load()
	if st == nil {
		return errNoDatabase
	}
	if n := len(d.GetNode()); n == 0 || n > 255 || d.GetDay() == 0 {
		return fmt.Errorf("a day of usual rates needs its number and the name of a node of 1 to 255 bytes")
	}
	data, err := proto.Marshal(d)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	return st.PutUsual(ctx, sqlstore.UsualDay{Node: d.GetNode(), Day: int64(d.GetDay()), UpdatedNs: d.GetUpdatedNs(), Data: data})
}

// loadUsual reads what the next classifier learned on a day; nil when there is none.
func (s *Service) loadUsual(ctx context.Context, q *eventv1.UsualQuery) (*eventv1.UsualDay, error) {
	st := s.store.Load()
	if st == nil {
		return nil, errNoDatabase
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	row, ok, err := st.NextUsual(ctx, int64(q.GetDay()), q.GetAfter())
	if err != nil || !ok {
		return nil, err
	}
	d := &eventv1.UsualDay{Node: row.Node, Day: q.GetDay()}
	if err := proto.Unmarshal(row.Data, d); err != nil { // a row that was changed by hand
		s.t.CountError("decode_usual")
		return &eventv1.UsualDay{Node: row.Node, Day: q.GetDay()}, nil
	}
	d.Node, d.Day = row.Node, q.GetDay()
	return d, nil
}
