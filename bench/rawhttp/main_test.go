package main

import (
	"slices"
	"strings"
	"testing"
)

func TestAnAnswerIsHeldAgainstWhatItMustBe(t *testing.T) {
	const good = `[["doveadmResponse",[{"value":"user=a"}],"0"],["doveadmResponse",[{"value":""}],"1"]]`
	if got, err := values(good, getBefore, getAfter, 2); err != nil || !slices.Equal(got, []string{"user=a", ""}) {
		t.Errorf("%q, %v", got, err)
	}
	const written = `[["doveadmResponse",[],"0"],["doveadmResponse",[],"1"]]`
	if _, err := values(written, setBefore, setAfter, 2); err != nil {
		t.Error(err)
	}
	for name, text := range map[string]string{
		"empty":       "",
		"none":        "[]",
		"one":         `[["doveadmResponse",[],"0"]]`,
		"three":       written[:len(written)-1] + `,["doveadmResponse",[],"2"]]`,
		"another tag": strings.Replace(written, `"1"`, `"0"`, 1),
		"swapped":     `[["doveadmResponse",[],"1"],["doveadmResponse",[],"0"]]`,
		"refused":     strings.Replace(written, `"doveadmResponse",[],"1"`, `"error",{"type":"exitCode","exitCode":67},"1"`, 1),
		"first":       strings.Replace(written, `"doveadmResponse",[],"0"`, `"error",{"type":"exitCode","exitCode":67},"0"`, 1),
		"a value":     strings.Replace(written, `[],"0"`, `[{"value":"user=a"}],"0"`, 1),
		"cut":         written[:len(written)-1],
		"junk":        written + "\n",
	} {
		if got, err := values(text, setBefore, setAfter, 2); err == nil {
			t.Errorf("%s passes as set: %q", name, got)
		}
		gets := strings.ReplaceAll(text, "[],", `[{"value":"user=a"}],`)
		if name == "a value" {
			gets = strings.Replace(good, `[{"value":""}]`, "[]", 1)
		}
		if got, err := values(gets, getBefore, getAfter, 2); err == nil {
			t.Errorf("%s passes as get: %q", name, got)
		}
	}
}
