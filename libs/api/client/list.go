package client

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
)

// uploadTime is how long a list's entries may take.
const uploadTime = 2 * time.Minute

func listPath(name string) string { return "lists/" + url.PathEscape(name) }

// Lists are all address lists, by name.
func (c *Client) Lists(ctx context.Context) ([]api.List, error) {
	return whole[api.List](ctx, c, "lists")
}

// List is one list with what each node has made of it.
func (c *Client) List(ctx context.Context, name string) (l api.List, err error) {
	return l, c.get(ctx, listPath(name), nil, &l)
}

// PutList makes a list, or changes what it does and where it is from.
func (c *Client) PutList(ctx context.Context, name string, in api.ListInput) (l api.List, err error) {
	return l, c.call(ctx, request{method: http.MethodPut, path: listPath(name), body: in}, &l)
}

// PutListEntries makes the lines of text, at most api.MaxList bytes, the entries of a list.
func (c *Client) PutListEntries(ctx context.Context, name string, text []byte) (l api.List, err error) {
	return l, c.call(ctx, request{method: http.MethodPut, path: listPath(name) + "/entries", text: text, limit: uploadTime}, &l)
}

// DeleteList takes a list away.
func (c *Client) DeleteList(ctx context.Context, name string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: listPath(name)}, nil)
}
