package config

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
)

// masked stands for a secret wherever a Config is shown.
const masked = "***"

// WriteTOML writes every effective setting as TOML. Inline secrets are shown
// as ***, files and commands by name; a secret that is not set is left out.
// Decoding the output under the same file name gives the same Config, inline
// secrets aside.
func (c *Config) WriteTOML(w io.Writer) error {
	b := bufio.NewWriter(w)
	writeTable(b, "", reflect.ValueOf(c).Elem())
	return b.Flush() // holds the first error, if any
}

// writeTable writes the keys of a table before its sub-tables, as TOML wants.
func writeTable(w *bufio.Writer, path string, v reflect.Value) {
	for key, value := range leaves(v) {
		fmt.Fprintf(w, "%s = %s\n", key, tomlValue(value))
	}
	for _, f := range fields(v.Type()) {
		fv, key := v.Field(f.index), join(path, f.name)
		switch kindOf(fv.Type()) {
		case table:
			fmt.Fprintf(w, "\n[%s]\n", key)
			writeTable(w, key, fv)
		case tables:
			for i := range fv.Len() {
				fmt.Fprintf(w, "\n[[%s]]\n", key)
				writeTable(w, key, fv.Index(i))
			}
		}
	}
}

// leaves yields the keys of a table that are no tables, with values that may
// be shown: string, bool, int or []string.
func leaves(v reflect.Value) func(yield func(string, any) bool) {
	return func(yield func(string, any) bool) {
		for _, f := range fields(v.Type()) {
			name, value := f.name, any(nil)
			switch x := v.Field(f.index).Interface().(type) {
			case Secret:
				if !x.IsSet() {
					continue
				}
				name, value = f.name+x.form(), x.reference()
			case URL:
				value = x.String()
			case Duration:
				value = x.String()
			case string, bool, int, []string:
				value = x
			default:
				continue
			}
			if !yield(name, value) {
				return
			}
		}
	}
}

func tomlValue(v any) string {
	switch v := v.(type) {
	case string:
		return tomlString(v)
	case []string:
		quoted := make([]string, len(v))
		for i, s := range v {
			quoted[i] = tomlString(s)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	}
	return fmt.Sprint(v)
}

// tomlString writes a basic string. strconv.Quote will not do: TOML has no \x
// and no \a or \v.
func tomlString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ':
			fmt.Fprintf(&b, `\u%04X`, r)
		case strconv.IsPrint(r):
			b.WriteRune(r)
		default: // invisible, or turning the direction of writing
			fmt.Fprintf(&b, `\U%08X`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// MarshalJSON gives the same settings as WriteTOML, under the same names.
func (c Config) MarshalJSON() ([]byte, error) {
	return json.Marshal(jsonTable(reflect.ValueOf(&c).Elem()))
}

func jsonTable(v reflect.Value) map[string]any {
	m := map[string]any{}
	for key, value := range leaves(v) {
		if list, ok := value.([]string); ok && list == nil {
			value = []string{}
		}
		m[key] = value
	}
	for _, f := range fields(v.Type()) {
		fv := v.Field(f.index)
		switch kindOf(fv.Type()) {
		case table:
			m[f.name] = jsonTable(fv)
		case tables:
			list := make([]any, fv.Len())
			for i := range list {
				list[i] = jsonTable(fv.Index(i))
			}
			m[f.name] = list
		}
	}
	return m
}
