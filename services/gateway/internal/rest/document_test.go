package rest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/tidegate-mesh/tidegate/libs/api"
)

func itoa(n int) string { return strconv.Itoa(n) }

// document is the OpenAPI document as a client sees it: read from its JSON, not from this package's types.
type document struct {
	operations []*documented
	root       map[string]any
}

type documented struct {
	id, method, path string
	role             string
	query            map[string]map[string]any // schemas of parameters
	header           []string
	text             bool           // the body is text
	body             map[string]any // schema; nil: none
	answers          map[string]map[string]*jsonschema.Schema
}

func readDocument(t testing.TB, body []byte) *document {
	t.Helper()
	root, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	const name = "urn:document"
	if err := c.AddResource(name, root); err != nil {
		t.Fatal(err)
	}
	d := &document{root: object(root)}
	for path, item := range object(d.root["paths"]) {
		for method, v := range object(item) {
			entry := object(v)
			op := &documented{method: strings.ToUpper(method), path: path, query: map[string]map[string]any{}, answers: map[string]map[string]*jsonschema.Schema{}}
			op.id, _ = entry["operationId"].(string)
			op.role, _ = entry["x-required-role"].(string)
			parameters, _ := entry["parameters"].([]any)
			for _, v := range parameters {
				p := object(v)
				n, _ := p["name"].(string)
				switch p["in"] {
				case "query":
					op.query[n] = object(p["schema"])
				case "header":
					op.header = append(op.header, n)
				}
			}
			if b := object(entry["requestBody"]); b != nil {
				op.body = d.resolve(object(object(object(b["content"])["application/json"])["schema"]))
				op.text = object(b["content"])["text/plain"] != nil
			}
			for code, v := range object(entry["responses"]) {
				op.answers[code] = map[string]*jsonschema.Schema{}
				for kind := range object(object(v)["content"]) {
					at := fmt.Sprintf("%s#/paths/%s/%s/responses/%s/content/%s/schema", name, escape(path), method, code, escape(kind))
					s, err := c.Compile(at)
					if err != nil {
						t.Fatalf("schema at %s: %v", at, err)
					}
					op.answers[code][kind] = s
				}
			}
			d.operations = append(d.operations, op)
		}
	}
	slices.SortFunc(d.operations, func(a, b *documented) int { return strings.Compare(a.id, b.id) })
	return d
}

func object(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

// escape makes a key a segment of a JSON pointer in a URI fragment.
func escape(s string) string {
	return strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D").Replace(s)
}

func (d *document) resolve(schema map[string]any) map[string]any {
	ref, ok := schema["$ref"].(string)
	if !ok {
		return schema
	}
	return object(object(object(d.root["components"])["schemas"])[ref[strings.LastIndexByte(ref, '/')+1:]])
}

// find is the operation of a request, nil for none.
func (d *document) find(method, target string) *documented {
	path, _, _ := strings.Cut(target, "?")
	if method == http.MethodHead {
		method = http.MethodGet
	}
	var found *documented
	for _, op := range d.operations {
		if op.method != method || !fits(op.path, path) {
			continue
		}
		if found == nil || !strings.Contains(op.path, "{") {
			found = op
		}
	}
	return found
}

func fits(template, path string) bool {
	a, b := strings.Split(template, "/"), strings.Split(path, "/")
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] && (!strings.HasPrefix(a[i], "{") || b[i] == "") {
			return false
		}
	}
	return true
}

// check holds an answer against the document: the status is one of the operation, the body is of its type and fits its
// schema. Where no operation is, only problems may be.
func (d *document) check(q request, w *httptest.ResponseRecorder) error {
	op := d.find(q.method, q.target)
	kind := w.Header().Get("Content-Type")
	if w.Header().Get("X-Request-Id") == "" {
		return errors.New("no request id")
	}
	if op == nil {
		if w.Code < 400 || w.Code >= 500 {
			return errors.New("there is no such operation")
		}
		if !strings.HasPrefix(q.target, "/api/") {
			return nil // the edge's answer to people
		}
		return checkProblem(q, w)
	}
	types, ok := op.answers[strconv.Itoa(w.Code)]
	if !ok {
		return fmt.Errorf("the status is not documented for %s", op.id)
	}
	if w.Code == http.StatusOK && op.method == http.MethodGet && op.id != "stream" && w.Header().Get("Etag") == "" {
		return errors.New("no entity tag")
	}
	if len(types) == 0 {
		if w.Body.Len() > 0 || kind != "" {
			return fmt.Errorf("a body of type %q where none is documented", kind)
		}
		return nil
	}
	schema, ok := types[kind]
	if !ok {
		return fmt.Errorf("type %q is not documented", kind)
	}
	if w.Code >= 400 {
		if err := checkProblem(q, w); err != nil {
			return err
		}
	}
	if q.method == http.MethodHead || !strings.HasSuffix(kind, "json") {
		return nil
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(w.Body.Bytes()))
	if err != nil {
		return err
	}
	return schema.Validate(v)
}

func checkProblem(q request, w *httptest.ResponseRecorder) error {
	if kind := w.Header().Get("Content-Type"); kind != problemType {
		return fmt.Errorf("type %q is no problem", kind)
	}
	if q.method == http.MethodHead {
		return nil
	}
	var p api.Problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		return err
	}
	if p.Status != w.Code || p.Title == "" || p.RequestID != w.Header().Get("X-Request-Id") {
		return fmt.Errorf("the problem is not of this answer: %+v", p)
	}
	return nil
}
