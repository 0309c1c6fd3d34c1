package ops

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/bus"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

const (
	feedTick = 5 * time.Second // how late a list may be read
	feedMost = 4               // readings at once
	feedTime = 5 * time.Minute // longer than any reading takes: who claimed a list so long ago has died
)

// Reader reads a list; *feed.Reader has it.
type Reader interface {
	Read(ctx context.Context, url, validator string) (text []byte, newValidator string, err error)
}

// feeds is the work on lists with a URL. Every gateway of the mesh looks for lists that are due, and the one whose claim
// the bucket takes reads it.
type feeds struct {
	reader Reader
	wake   chan struct{}
	slots  chan struct{}
	wg     sync.WaitGroup
}

func newFeeds(r Reader) feeds {
	return feeds{reader: r, wake: make(chan struct{}, 1), slots: make(chan struct{}, feedMost)}
}

func (f *feeds) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// ReadFeeds reads lists from their URLs when they are due, until ctx ends (nil).
func (o *Operations) ReadFeeds(ctx context.Context) error {
	tick := time.NewTicker(feedTick)
	defer tick.Stop()
	defer o.feeds.wg.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-o.feeds.wake:
		}
		all, err := o.bus.Lists(ctx)
		if err != nil {
			o.t.CountError("lists")
			continue
		}
		for _, e := range all {
			if !o.due(e.List) {
				continue
			}
			select {
			case o.feeds.slots <- struct{}{}:
			case <-ctx.Done():
				return nil
			}
			o.feeds.wg.Add(1)
			go func() {
				defer func() { <-o.feeds.slots; o.feeds.wg.Done() }()
				o.readFeed(ctx, e)
			}()
		}
	}
}

// due also tells of a list that was read while this machine's clock, or another gateway's, was ahead, and of one whose
// reading came to no end.
func (o *Operations) due(l *policyv1.AddressList) bool {
	far := func(from int64, atLeast time.Duration) bool {
		since := time.Duration(o.now().UnixNano() - from)
		return max(since, -since) >= atLeast
	}
	return l.GetUrl() != "" && far(l.GetClaimedNs(), feedTime) && far(l.GetCheckedNs(), max(time.Duration(l.GetEveryNs()), minEvery))
}

// readFeed claims a list that is due, reads it and stores what came. A failure leaves the entries as they are.
func (o *Operations) readFeed(ctx context.Context, e bus.ListEntry) {
	claimed := proto.CloneOf(e.List)
	claimed.ClaimedNs = o.now().UnixNano()
	revision, err := o.bus.UpdateList(ctx, claimed, e.Revision)
	if err != nil {
		if !errors.Is(err, bus.ErrConflict) { // else another gateway reads it, or it has changed and is due in its new form
			o.t.CountError("lists")
		}
		return
	}
	name, url := claimed.GetName(), claimed.GetUrl()
	text, validator, err := o.feeds.reader.Read(ctx, url, claimed.GetValidator())
	if ctx.Err() != nil { // this gateway ends: the next that looks reads the list
		claimed.ClaimedNs = 0
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTime)
		defer cancel()
		if _, err := o.bus.UpdateList(ctx, claimed, revision); err != nil && !errors.Is(err, bus.ErrConflict) { // else it has changed and is due in its new form
			o.t.CountError("lists")
		}
		return
	}
	var read *entries
	if err == nil && text != nil {
		read, err = parseEntries(kindOf(claimed), text)
	}
	if err == nil && read != nil && read.empty() && claimed.GetHosts()+claimed.GetPrefixes()+claimed.GetDomains() > 0 {
		err = errors.New("the answer is an empty list: the entries before it stay; delete the list if that is meant")
	}
	said := ""
	if err != nil {
		said = sentence(feedProblem(err))
		o.t.CountError("read_list")
		o.t.Log.Warn("a list cannot be read from its URL; its entries stay", "list", name, "url", url, "error", said)
	}
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	_, err = o.updateList(ctx, name, false, func(ctx context.Context, l *policyv1.AddressList) (*entries, error) {
		if l.GetUrl() != url || kindOf(l) != kindOf(claimed) {
			return nil, errOtherURL
		}
		l.CheckedNs, l.ClaimedNs = claimed.GetClaimedNs(), 0
		if l.Problem = said; said != "" || read == nil {
			return nil, nil //nolint:nilnil // the entries stay
		}
		l.Validator = validator
		return read, o.setEntries(ctx, l, read)
	})
	switch {
	case errors.Is(err, errOtherURL):
	case err != nil:
		o.t.CountError("read_list")
		o.t.Log.Warn("what a list's URL said was not stored; it is read again", "list", name, "error", err)
	case read != nil && said == "" && read.rejected > 0:
		o.t.Log.Warn("lines of a list are no entries and were left out", "list", name, "lines", read.rejected, "first", read.examples[0].Line)
	}
}

var errOtherURL = errors.New("the list has another URL by now")

// feedProblem is the sentence of an error, without the title of a problem.
func feedProblem(err error) string {
	var p *api.Problem
	if !errors.As(err, &p) {
		return err.Error()
	}
	text := p.Detail
	if len(p.Errors) > 0 {
		text += ", the first: " + p.Errors[0].Location
	}
	return text
}
