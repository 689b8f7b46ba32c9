package api

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestMain fails if a documented answer was never given, once all tests have
// passed.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 && wholeRun() {
		for _, unseen := range document.unseen() {
			fmt.Fprintln(os.Stderr, "openapi.json documents what no test has seen:", unseen)
			code = 1
		}
	}
	os.Exit(code)
}

func wholeRun() bool {
	for _, name := range []string{"test.run", "test.skip", "test.list", "test.fuzz"} {
		if flag.Lookup(name).Value.String() != "" {
			return false
		}
	}
	return true
}

func TestEveryRouteIsDocumentedAndTheReverse(t *testing.T) {
	ids := map[string]bool{}
	documented := map[string][]string{}
	document.operations(func(path, method string, op map[string]any) {
		documented[path] = append(documented[path], strings.ToUpper(method))
		id, _ := op["operationId"].(string)
		if id == "" || ids[id] {
			t.Errorf("%s %s: operationId %q", method, path, id)
		}
		ids[id] = true
		route := routes()[path][strings.ToUpper(method)]
		if security, own := op["security"].([]any); route.open != (own && len(security) == 0) {
			t.Errorf("%s %s: open %v, but security %v", method, path, route.open, op["security"])
		}
	})
	if len(documented) != 8 {
		t.Errorf("%d paths", len(documented))
	}
	for path, methods := range documented {
		slices.Sort(methods)
		if routed := slices.Sorted(maps.Keys(routes()[path])); !slices.Equal(routed, methods) {
			t.Errorf("%s: routes has %v, openapi.json %v", path, routed, methods)
		}
	}
	for path := range routes() {
		if documented[path] == nil {
			t.Errorf("%s is not in openapi.json", path)
		}
	}
}

func TestEveryReferenceLeadsSomewhere(t *testing.T) {
	used := map[string]bool{}
	var visit func(v any)
	visit = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				visit(e)
			}
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				used[ref] = true
				if dig(document.root, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...) == nil {
					t.Errorf("%s leads nowhere", ref)
				}
			}
			for _, e := range v {
				visit(e)
			}
		}
	}
	visit(document.root)
	for group, members := range document.root["components"].(map[string]any) {
		for name := range members.(map[string]any) {
			if ref := "#/components/" + group + "/" + name; !used[ref] && group != "securitySchemes" {
				t.Errorf("%s is not used", ref)
			}
		}
	}
}

func TestEveryExampleIsValid(t *testing.T) {
	n := 0
	var visit func(v any, at []string)
	visit = func(v any, at []string) {
		m, ok := v.(map[string]any)
		if !ok {
			return
		}
		if examples, ok := m["examples"].(map[string]any); ok && m["schema"] != nil {
			for name := range examples {
				example, _ := document.follow(append(slices.Clone(at), "examples", name)...)
				text, _ := json.Marshal(dig(example, "value"))
				if err := document.valid(string(text), append(slices.Clone(at), "schema")...); err != nil {
					t.Errorf("%s, %s: %v", strings.Join(at, " "), name, err)
				}
				n++
			}
		}
		if example, ok := m["example"]; ok {
			text, _ := json.Marshal(example)
			if err := document.valid(string(text), append(slices.Clone(at), "schema")...); err != nil {
				t.Errorf("%s: %v", strings.Join(at, " "), err)
			}
			n++
		}
		for key, e := range m {
			visit(e, append(slices.Clone(at), key))
		}
	}
	visit(document.root, nil)
	if n < 8 {
		t.Errorf("found %d examples", n)
	}
}

func TestEveryProblemTypeIsDescribed(t *testing.T) {
	var described []string
	for name := range document.root["x-problems"].(map[string]any) {
		described = append(described, types+name)
	}
	slices.Sort(described)
	var listed []string
	for _, name := range dig(document.root, "components", "schemas", "Problem", "properties", "type", "enum").([]any) {
		if name != "about:blank" {
			listed = append(listed, name.(string))
		}
	}
	slices.Sort(listed)
	if !slices.Equal(described, listed) {
		t.Errorf("described %q, listed %q", described, listed)
	}
}
