package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

const dbURL = "postgres://agent:hunter2@db.example/dovepush?sslmode=require&password=hunter2&sslpassword=hunter2"

// TestNothingPrintsASecret tries every verb and encoder on secrets by
// themselves, inside a Config, and where fmt cannot call their methods.
func TestNothingPrintsASecret(t *testing.T) {
	c := mustParse(t, strings.ReplaceAll(full, "hunter3", "hunter2"))
	c.Registry.URL = NewURL(dbURL)
	s := c.Servers[0].Auth.Password
	type hidden struct { // fmt reaches unexported fields by reflection only
		secret Secret
		url    URL
		deep   *Config
		list   []Secret
		byKey  map[string]Secret
	}
	h := hidden{s, c.Registry.URL, c, []Secret{s}, map[string]Secret{"a": s}}
	things := map[string]any{
		"Secret": s, "*Secret": &s, "Auth": c.Servers[0].Auth, "*Server": &c.Servers[0],
		"[]Server": c.Servers, "Config": *c, "*Config": c, "URL": c.Registry.URL, "*URL": &c.Registry.URL,
		"Registry": c.Registry, "hidden": h, "*hidden": &h, "[]any": []any{s, c}, "map": map[string]Secret{"a": s},
	}
	verbs := []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%c", "%U", "%p", "%b", "%o", "%e", "%10v", "%-10.2s", "%!"}
	for name, thing := range things {
		for _, verb := range verbs {
			if got := fmt.Sprintf(verb, thing); shows(got) {
				t.Errorf("%s of %s: %s", verb, name, got)
			}
		}
		if got := fmt.Sprint(thing) + fmt.Sprintln(thing); shows(got) {
			t.Errorf("Sprint of %s: %s", name, got)
		}
		data, err := json.Marshal(thing)
		if err != nil {
			t.Errorf("JSON of %s: %v", name, err)
		}
		if shows(string(data)) {
			t.Errorf("JSON of %s: %s", name, data)
		}
		var b bytes.Buffer
		slog.New(slog.NewTextHandler(&b, nil)).Info("x", "thing", thing)
		slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "thing", thing)
		if shows(b.String()) {
			t.Errorf("log of %s: %s", name, &b)
		}
	}
}

func shows(s string) bool {
	return strings.Contains(s, "hunter2") || strings.Contains(s, fmt.Sprintf("%x", "hunter2")) || strings.Contains(s, fmt.Sprintf("%X", "hunter2"))
}

func TestSecretPrintsStars(t *testing.T) {
	s := NewSecret("hunter2")
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
		for _, thing := range []any{s, &s} {
			if got := fmt.Sprintf(verb, thing); got != "***" {
				t.Errorf("%s of %T: %s", verb, thing, got)
			}
		}
	}
	for name, got := range map[string]string{"String": s.String(), "GoString": s.GoString(), "LogValue": s.LogValue().String()} {
		if got != "***" {
			t.Errorf("%s: %s", name, got)
		}
	}
	if text, err := s.MarshalText(); string(text) != "***" || err != nil {
		t.Errorf("MarshalText: %s %v", text, err)
	}
	if text, err := json.Marshal(s); string(text) != `"***"` || err != nil {
		t.Errorf("MarshalJSON: %s %v", text, err)
	}
}

func TestURLMasksItsPasswords(t *testing.T) {
	for raw, want := range map[string]string{
		"":                                      "",
		dbURL:                                   "postgres://agent:***@db.example/dovepush?sslmode=require&password=***&sslpassword=***",
		"postgres://agent@db/d":                 "postgres://agent@db/d",
		"postgres://db/d?x=1":                   "postgres://db/d?x=1",
		"postgres://a%40b:hunter2@db/d":         "postgres://a%40b:***@db/d",
		"postgres://:hunter2@db/d":              "postgres://:***@db/d",
		"postgres://db/d?p%61ssword=hunter2":    "postgres://db/d?p%61ssword=***",
		"postgres://db/d?%zz=hunter2":           "postgres://db/d?%zz=***",
		"host=db password=hunter2":              "***",
		"postgres://agent:hunter2@db:port/d":    "***",
		"postgres:agent:hunter2":                "***",
		"postgres://agent:hun ter2%zz@db.x/d\n": "***",
	} {
		u := NewURL(raw)
		if u.Reveal() != raw {
			t.Errorf("Reveal of %q: %q", raw, u.Reveal())
		}
		text, err := u.MarshalText()
		if err != nil {
			t.Error(err)
		}
		for name, got := range map[string]string{
			"String": u.String(), "GoString": u.GoString(), "MarshalText": string(text),
			"LogValue": u.LogValue().String(), "%v": fmt.Sprintf("%v", u), "%#v": fmt.Sprintf("%#v", &u),
		} {
			if got != want {
				t.Errorf("%s of %q: %q, want %q", name, raw, got, want)
			}
		}
	}
}
