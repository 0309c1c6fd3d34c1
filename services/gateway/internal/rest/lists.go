package rest

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
)

// Named is the path of a list.
type Named struct {
	Name string `path:"name" minLength:"1" maxLength:"64" pattern:"^[a-z0-9][a-z0-9_-]*$" doc:"name of the list"`
}

type listsInput struct {
	Located
}

type putListInput struct {
	Named
	Key
	Body api.ListInput
}

type deleteListInput struct {
	Named
	Key
}

// listText has no Idempotency-Key: the same text twice is the same list.
type listText struct {
	Named
	RawBody []byte `contentType:"text/plain" doc:"an address or prefix a line, or a domain; what follows a space, comma, semicolon or # is not looked at, but for the names in lines of a hosts file"`
}

// lists are the routes of lists of addresses and of domains.
func (a *API) lists() {
	o := a.d.Operations
	all := operation(caller.Viewer, http.MethodGet, "/lists", "list-lists", "The lists of addresses and of domains, by name", "lists")
	huma.Register(a.huma, all, func(ctx context.Context, in *listsInput) (*Listing[api.List], error) {
		items, err := o.Lists(ctx)
		return listing(ctx, &in.at, api.Page[api.List]{Items: items}, err)
	})
	one := operation(caller.Viewer, http.MethodGet, "/lists/{name}", "get-list", "A list and what each node has made of it", "lists")
	one.Errors = []int{http.StatusNotFound}
	huma.Register(a.huma, one, func(ctx context.Context, in *Named) (*Output[api.List], error) {
		v, err := o.List(ctx, in.Name)
		return output(ctx, v, err)
	})
	put := operation(caller.Operator, http.MethodPut, "/lists/{name}", "put-list", "Make a list, or change what it does and where it is from; its entries stay", "lists")
	put.Metadata[metaIdempotent] = true
	huma.Register(a.huma, put, func(ctx context.Context, in *putListInput) (*Output[api.List], error) {
		v, err := o.PutList(ctx, in.Name, in.Body)
		return output(ctx, v, err)
	})
	entries := operation(caller.Operator, http.MethodPut, "/lists/{name}/entries", "put-list-entries", "Put entries in the place of those that a list has", "lists")
	entries.MaxBodyBytes = api.MaxList
	entries.Errors = []int{http.StatusNotFound, http.StatusConflict}
	huma.Register(a.huma, entries, func(ctx context.Context, in *listText) (*Output[api.List], error) {
		v, err := o.PutListEntries(ctx, in.Name, in.RawBody)
		return output(ctx, v, err)
	})
	remove := operation(caller.Operator, http.MethodDelete, "/lists/{name}", "delete-list", "Take a list away, and with it what it does", "lists")
	remove.Metadata[metaIdempotent], remove.DefaultStatus = true, http.StatusNoContent
	remove.Errors = []int{http.StatusNotFound}
	huma.Register(a.huma, remove, func(ctx context.Context, in *deleteListInput) (*none, error) {
		if err := o.DeleteList(ctx, in.Name); err != nil {
			return nil, fail(ctx, err)
		}
		return nil, nil //nolint:nilnil // 204
	})
}
