package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/agnivade/levenshtein"
)

// decoder lays what the TOML parser read over a Config. It does so itself
// because the parser's own decoding stops at the first error, matches keys
// without regard to case, and names Go types in its messages.
type decoder struct {
	*report
	given map[string]bool // keys that stand in the file with something in them
}

func decode(root map[string]any, c *Config, r *report) map[string]bool {
	d := decoder{r, map[string]bool{}}
	d.table("", root, reflect.ValueOf(c).Elem())
	return d.given
}

func (d *decoder) table(path string, in map[string]any, out reflect.Value) {
	for _, f := range fields(out.Type()) {
		key, fv := join(path, f.name), out.Field(f.index)
		if kindOf(fv.Type()) == secret {
			d.secret(path, f.name, in, fv.Addr().Interface().(*Secret))
			continue
		}
		v, ok := in[f.name]
		if !ok {
			continue
		}
		switch kindOf(fv.Type()) {
		case table:
			if sub, ok := v.(map[string]any); ok {
				d.table(key, sub, fv)
			} else {
				d.add(key, "must be a table, [%s] in single brackets, not %s", header(key), typeName(v))
			}
		case tables:
			d.tables(key, v, fv)
		case leaf:
			d.given[key] = v != ""
			d.leaf(key, v, fv.Addr().Interface())
		}
	}
	known := keys(out.Type())
	for _, key := range slices.Sorted(maps.Keys(in)) {
		if slices.Contains(known, key) {
			continue
		}
		meant, hint := guess(key, known, path)
		d.add(join(path, key), "unknown key%s", hint)
		if _, ok := in[meant]; meant != "" && !ok {
			d.mute(join(path, meant)) // it is misspelt, not missing
		}
	}
}

// header is the table name that stands in brackets: server.auth for server[0].auth.
func header(key string) string {
	before, rest, _ := strings.Cut(key, "[")
	_, after, _ := strings.Cut(rest, "]")
	return before + after
}

// tables reads a list of tables, each over the defaults of its kind.
func (d *decoder) tables(key string, v any, out reflect.Value) {
	var list []any
	switch v := v.(type) {
	case []map[string]any: // [[key]]
		for _, t := range v {
			list = append(list, t)
		}
	case []any: // key = [{...}]
		list = v
	case map[string]any:
		d.add(key, "write [[%s]], in double brackets, instead of [%[1]s]", key)
		return
	default:
		d.add(key, "must be tables, [[%s]] in double brackets, not %s", key, typeName(v))
		return
	}
	for i, v := range list {
		one, here := defaultOf(out.Type().Elem()), indexed(key, i)
		if t, ok := v.(map[string]any); ok {
			d.table(here, t, one)
		} else {
			d.add(here, "must be a table, not %s", typeName(v))
		}
		out.Set(reflect.Append(out, one))
	}
}

// defaultOf returns a table of a list as it is without keys.
func defaultOf(t reflect.Type) reflect.Value {
	v := reflect.New(t).Elem()
	switch one := v.Addr().Interface().(type) {
	case *Server:
		*one = DefaultServer()
	case *Webhook:
		*one = DefaultWebhook()
	}
	return v
}

// secret reads the three forms of a secret; an empty one counts as absent.
func (d *decoder) secret(path, name string, in map[string]any, out *Secret) {
	var given []string
	for _, form := range []string{formInline, formFile, formCommand} {
		v, ok := in[name+form]
		if !ok {
			continue
		}
		s, ok := v.(string)
		if !ok {
			d.add(join(path, name+form), "must be a string in double quotes, not %s", typeName(v))
			d.mute(join(path, name+formFile)) // where a missing secret is reported
			continue
		}
		if s == "" {
			continue
		}
		given = append(given, name+form)
		switch form {
		case formInline:
			out.value = &s
			if _, err := clean(s); err != nil {
				d.add(join(path, name), "%v", err)
			}
		case formFile:
			out.file = s
		case formCommand:
			out.command = s
			if strings.ContainsRune(s, 0) {
				d.add(join(path, name+form), "holds a NUL byte")
			}
		}
	}
	if len(given) > 1 {
		d.add(join(path, given[1]), "%s are set; keep one of them", and(given))
	}
}

func (d *decoder) leaf(key string, v any, out any) {
	want := ""
	switch out := out.(type) {
	case *string:
		if s, ok := v.(string); ok {
			*out = s
			return
		}
		want = "a string in double quotes"
	case *URL:
		if s, ok := v.(string); ok {
			*out = NewURL(s)
			return
		}
		want = "a string in double quotes"
	case *bool:
		if b, ok := v.(bool); ok {
			*out = b
			return
		}
		want = "true or false, without quotes"
	case *int:
		if n, ok := v.(int64); ok {
			*out = int(n)
			return
		}
		want = "a whole number, without quotes"
	case *Duration:
		if s, ok := v.(string); ok {
			if err := out.UnmarshalText([]byte(s)); err != nil {
				d.add(key, "%v", err)
			}
			return
		}
		want = `a duration in double quotes, such as "30s"`
	case *[]string:
		if list, ok := v.([]any); ok {
			d.list(key, list, out)
			return
		}
		want = `a list of strings, such as ["one", "two"]`
	default:
		panic(fmt.Sprintf("config: %s: no decoder for %T", key, out)) // a mistake in Config's declaration
	}
	d.add(key, "must be %s, not %s", want, typeName(v))
}

func (d *decoder) list(key string, list []any, out *[]string) {
	*out = nil
	for i, v := range list {
		if s, ok := v.(string); ok {
			*out = append(*out, s)
		} else {
			d.add(fmt.Sprintf("%s[%d]", key, i), "must be a string in double quotes, not %s", typeName(v))
		}
	}
}

func typeName(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case int64:
		return "an integer"
	case float64:
		return "a float"
	case bool:
		return "a boolean"
	case time.Time:
		return "a date"
	case map[string]any:
		return "a table"
	case []map[string]any:
		return "a list of tables"
	}
	return "a list"
}

// guess says what an unknown key was meant to be: a neighbour misspelt, which
// it also returns, or a key of another table. A key after a [table] line
// belongs to that table, which is the commonest mistake in TOML.
func guess(key string, known []string, path string) (meant, hint string) {
	meant, distance := nearest(key, known)
	if distance <= 1 {
		return meant, "; did you mean " + meant + "?"
	}
	var places []string
	for _, home := range homes(key) {
		switch home {
		case "":
			return "", "; it belongs at the top of the file, before the first [table]"
		case "server", "webhook":
			places = append(places, "[["+home+"]]")
		default:
			places = append(places, "["+home+"]")
		}
	}
	if len(places) > 0 {
		return "", " here; it belongs in " + or(places)
	}
	if distance == 2 && len(key) >= 4 {
		return meant, "; did you mean " + meant + "?"
	}
	return "", ""
}

// nearest returns the known key at the least distance, which is 3 if none is near.
func nearest(key string, known []string) (string, int) {
	best, distance := "", 3
	if len(key) > 64 { // the distance takes quadratic time
		return best, distance
	}
	for _, k := range known {
		n := levenshtein.ComputeDistance(strings.ToLower(key), k)
		if n < distance {
			best, distance = k, n
		}
	}
	return best, distance
}

func and(list []string) string { return enumerate(list, "and") }
func or(list []string) string  { return enumerate(list, "or") }

func enumerate(list []string, word string) string {
	n := len(list) - 1
	if n < 1 {
		return strings.Join(list, "")
	}
	return strings.Join(list[:n], ", ") + " " + word + " " + list[n]
}
