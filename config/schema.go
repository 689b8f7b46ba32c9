package config

import (
	"iter"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// The struct tags of Config are the one description of the file. This page
// reads them, for the decoder, the encoder and whoever looks for secrets.

// Suffixes of the three forms of a secret NAME.
const (
	formInline  = ""
	formFile    = "_file"
	formCommand = "_command"
)

// secretNames are the keys whose inline form is a secret.
var secretNames = []string{"password", "api_key", "token", "url", "identity_key", "identity_old_key", "secret", "old_secret"}

type field struct {
	name  string // the key
	index int
}

// fields lists the keys of a table in the order of the struct.
func fields(t reflect.Type) []field {
	var list []field
	for i := range t.NumField() {
		if name := t.Field(i).Tag.Get("toml"); name != "" {
			list = append(list, field{name, i})
		}
	}
	return list
}

type kind int

const (
	leaf   kind = iota
	secret      // three keys
	table       // [name]
	tables      // [[name]]
)

func kindOf(t reflect.Type) kind {
	switch {
	case t == reflect.TypeFor[Secret]():
		return secret
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		return tables
	case t == reflect.TypeFor[URL](), t.Kind() != reflect.Struct:
		return leaf
	}
	return table
}

// keys lists every key that may stand in a table, tables included.
func keys(t reflect.Type) []string {
	var list []string
	for _, f := range fields(t) {
		list = append(list, f.name)
		if kindOf(t.Field(f.index).Type) == secret {
			list = append(list, f.name+formFile, f.name+formCommand)
		}
	}
	return list
}

// homes says in which tables a key may stand: "" is the top of the file.
func homes(key string) []string {
	var found []string
	var visit func(t reflect.Type, path string)
	visit = func(t reflect.Type, path string) {
		if slices.Contains(keys(t), key) {
			found = append(found, path)
		}
		for _, f := range fields(t) {
			ft := t.Field(f.index).Type
			switch kindOf(ft) {
			case table:
				visit(ft, join(path, f.name))
			case tables:
				visit(ft.Elem(), join(path, f.name))
			}
		}
	}
	visit(reflect.TypeFor[Config](), "")
	return found
}

// secrets yields every secret, set or not, with the path of its inline key.
func (c *Config) secrets() iter.Seq2[string, *Secret] {
	return func(yield func(string, *Secret) bool) {
		findSecrets(reflect.ValueOf(c).Elem(), "", yield)
	}
}

func findSecrets(v reflect.Value, path string, yield func(string, *Secret) bool) bool {
	for _, f := range fields(v.Type()) {
		fv, key := v.Field(f.index), join(path, f.name)
		switch kindOf(fv.Type()) {
		case secret:
			if !yield(key, fv.Addr().Interface().(*Secret)) {
				return false
			}
		case table:
			if !findSecrets(fv, key, yield) {
				return false
			}
		case tables:
			for i := range fv.Len() {
				if !findSecrets(fv.Index(i), key+"["+strconv.Itoa(i)+"]", yield) {
					return false
				}
			}
		}
	}
	return true
}

// join appends a key to a path, quoted if it is not a bare TOML key.
func join(path, key string) string {
	bare := key != "" && len(key) <= 64 && strings.Trim(key,
		"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == ""
	if !bare {
		key = quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}
