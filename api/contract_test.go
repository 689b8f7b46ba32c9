package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// document is openapi.json, and what was seen of it.
var document = load()

type contract struct {
	root     map[string]any
	compiler *jsonschema.Compiler
	mu       sync.Mutex
	schemas  map[string]*jsonschema.Schema
	seen     map[string]bool
}

const location = "mem:///openapi.json"

func load() *contract {
	root, err := jsonschema.UnmarshalJSON(bytes.NewReader(openapi))
	if err != nil {
		panic(err)
	}
	c := &contract{root: root.(map[string]any), compiler: jsonschema.NewCompiler(), schemas: map[string]*jsonschema.Schema{}, seen: map[string]bool{}}
	c.compiler.AssertFormat()
	strict, err := jsonschema.UnmarshalJSON(bytes.NewReader(openapi))
	if err != nil {
		panic(err)
	}
	// Clients must bear with members that come later; these tests must not.
	for _, s := range dig(strict, "components", "schemas").(map[string]any) {
		if s := s.(map[string]any); s["properties"] != nil {
			s["additionalProperties"] = false
		}
	}
	if err := c.compiler.AddResource(location, strict); err != nil {
		panic(err)
	}
	return c
}

func dig(v any, path ...string) any {
	for _, key := range path {
		m, _ := v.(map[string]any)
		v = m[key]
	}
	return v
}

// follow resolves a $ref, and says where the thing stands.
func (c *contract) follow(pointer ...string) (any, []string) {
	v := dig(c.root, pointer...)
	if ref, ok := dig(v, "$ref").(string); ok {
		pointer = strings.Split(strings.TrimPrefix(ref, "#/"), "/")
		v = dig(c.root, pointer...)
	}
	return v, pointer
}

// valid checks a JSON text against the schema at a place in the document.
func (c *contract) valid(text string, pointer ...string) error {
	where := location + "#"
	for _, key := range pointer {
		key = strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
		where += "/" + url.PathEscape(key)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	schema, ok := c.schemas[where]
	if !ok {
		var err error
		if schema, err = c.compiler.Compile(where); err != nil {
			return err
		}
		c.schemas[where] = schema
	}
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		return err
	}
	return schema.Validate(v)
}

// check says what in a request and its answer is not as documented.
func (c *contract) check(method, target, sent string, got reply) (wrong []error) {
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	path, query, _ := strings.Cut(target, "?")
	template, _ := pattern(path)
	head := method == http.MethodHead
	if head {
		method = http.MethodGet
	}
	kind, _, _ := mime.ParseMediaType(got.header.Get("Content-Type"))
	if got.header.Get("Cache-Control") != "no-store" || got.header.Get("X-Content-Type-Options") != "nosniff" {
		complain("headers %v", got.header)
	}
	if got.status >= 400 && kind != "application/problem+json" {
		complain("an error of type %q", kind)
	}
	at := []string{"paths", template, strings.ToLower(method)}
	if dig(c.root, at...) == nil || method != strings.ToUpper(method) {
		if got.status != 401 && got.status != 404 && got.status != 405 || (got.status == 405) != (got.header.Get("Allow") != "") {
			complain("status %d, Allow %q where there is no operation", got.status, got.header.Get("Allow"))
		}
		if !head {
			if err := c.valid(got.body, "components", "schemas", "Problem"); err != nil {
				complain("%w", err)
			}
		}
		return wrong
	}
	answered := append(slices.Clone(at), "responses", fmt.Sprint(got.status))
	response, place := c.follow(answered...)
	if response == nil {
		complain("this status is not documented")
		return wrong
	}
	c.mu.Lock()
	c.seen[strings.Join(answered, " ")] = true
	c.mu.Unlock()
	if headers, ok := dig(response, "headers").(map[string]any); ok {
		for name := range headers {
			text, _ := json.Marshal(got.header.Get(name))
			if err := c.valid(string(text), append(slices.Clone(place), "headers", name, "schema")...); err != nil {
				complain("header %s: %w", name, err)
			}
		}
	}
	content, _ := dig(response, "content").(map[string]any)
	switch {
	case content == nil && (got.body != "" || kind != ""):
		complain("content where none is documented")
	case content != nil && content[kind] == nil:
		complain("content of type %q", kind)
	case content != nil && !head:
		text := got.body
		if kind == "text/plain" || kind == "text/event-stream" {
			quoted, _ := json.Marshal(text)
			text = string(quoted)
		}
		if err := c.valid(text, append(slices.Clone(place), "content", kind, "schema")...); err != nil {
			complain("body: %w", err)
		}
	}
	if got.status < 300 {
		wrong = append(wrong, c.checkRequest(at, query, sent)...)
	}
	return wrong
}

// checkRequest holds what was accepted against what may be sent.
func (c *contract) checkRequest(at []string, query, sent string) (wrong []error) {
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	values, _ := url.ParseQuery(query)
	params, _ := dig(c.root, append(slices.Clone(at), "parameters")...).([]any)
	for name, list := range values {
		if params == nil {
			break // the probes and the like overlook what is appended
		}
		if !slices.ContainsFunc(params, func(p any) bool {
			if ref, ok := dig(p, "$ref").(string); ok {
				p = dig(c.root, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
			}
			return dig(p, "name") == name && dig(p, "in") == "query"
		}) {
			complain("accepted the parameter %s=%q, which is not documented", name, list)
		}
	}
	if sent == "" || at[2] == "get" { // a body of GET has no meaning (RFC 9110 section 9.3.1)
		return wrong
	}
	body := append(slices.Clone(at), "requestBody", "content", "application/json", "schema")
	if dig(c.root, body...) == nil {
		complain("accepted a body where none is documented")
	} else if err := c.valid(sent, body...); err != nil {
		complain("accepted %s: %w", sent, err)
	}
	return wrong
}

// operations are all that the document has: path, method, what it says.
func (c *contract) operations(yield func(path, method string, op map[string]any)) {
	for path, item := range c.root["paths"].(map[string]any) {
		for method, op := range item.(map[string]any) {
			if op, ok := op.(map[string]any); ok {
				yield(path, method, op)
			}
		}
	}
}

func (c *contract) unseen() (list []string) {
	c.operations(func(path, method string, op map[string]any) {
		for status := range op["responses"].(map[string]any) {
			if !c.seen[strings.Join([]string{"paths", path, method, "responses", status}, " ")] {
				list = append(list, method+" "+path+" "+status)
			}
		}
	})
	slices.Sort(list)
	return list
}
