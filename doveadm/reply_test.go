package doveadm

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"dovepush/imapmeta"
)

func calls(commands ...command) (list []*call) {
	for _, c := range commands {
		list = append(list, &call{command: c})
	}
	return list
}

func TestCommandsAsTheyGoOverTheWire(t *testing.T) {
	text, err := body(calls(
		command{method: get, user: `a"b\c`},
		command{method: set, user: "müller", value: "user=a\x01tb\tc=\u2028"},
		command{method: unset, user: "o'hara #+=%"},
		command{method: lookup, user: "alice"},
	))
	const entry = `"mailbox":"","allowEmptyMailboxName":true,"key":"/private/vendor/vendor.dovecot/http-notify"`
	want := `[["mailboxMetadataGet",{"user":"a\"b\\c",` + entry + `},"0"],` +
		`["mailboxMetadataSet",{"user":"müller",` + entry + `,"value":"user=a\u0001tb\tc=\u2028"},"1"],` +
		`["mailboxMetadataUnset",{"user":"o'hara #+=%",` + entry + `},"2"],` +
		`["user",{"userMask":["alice"]},"3"]]`
	if err != nil || string(text) != want {
		t.Errorf("%s (%v); want\n%s", text, err, want)
	}
	if text, err := body(nil); err != nil || string(text) != "[]" {
		t.Errorf("no commands: %s (%v)", text, err)
	}
}

// size bounds a POST before it is encoded.
func TestNoCommandIsLongerThanItsSize(t *testing.T) {
	for _, text := range []string{"", "alice", strings.Repeat("\x01", 1000), strings.Repeat("<", 1000), strings.Repeat("\u2028", 300), strings.Repeat("é", 500)} {
		for _, m := range []method{get, set, unset, lookup} {
			c := command{method: m, user: text, value: text}
			many := make([]*call, 10)
			for i := range many {
				many[i] = &call{command: c}
			}
			if got, err := body(many); err != nil || len(got) > 10*c.size() {
				t.Errorf("10 times %s of %.10q: %d bytes (%v), more than %d", m, text, len(got), err, 10*c.size())
			}
		}
	}
}

// told is what a reply says, in a word.
func told(r *reply) string {
	switch {
	case r == nil:
		return "none"
	case r.long:
		return "long"
	case r.status == statusExitCode:
		return fmt.Sprintf("exit %d", r.exitCode)
	case r.status == statusResponse:
		return string(r.data)
	}
	return r.status
}

// answers are what Dovecot was seen to say.
var answers = []struct {
	name, text string
	want       []string // by the command
}{
	{"2.3 and 2.4: nothing asked", `[]`, nil},
	{"2.3 and 2.4: set", `[["doveadmResponse",[],"0"]]`, []string{`[]`}},
	{"2.3 and 2.4: get", `[["doveadmResponse",[{"value":"user=1"}],"0"],["doveadmResponse",[{"value":""}],"1"]]`,
		[]string{`[{"value":"user=1"}]`, `[{"value":""}]`}},
	{"2.3: unknown user", `[["error",{"type":"exitCode", "exitCode":67},"0"],["doveadmResponse",[{"value":""}],"1"]]`, []string{"exit 67", `[{"value":""}]`}},
	{"2.4: unknown user", `[["error",{"type":"exitCode","exitCode":67},"0"],["doveadmResponse",[{"value":""}],"1"]]`, []string{"exit 67", `[{"value":""}]`}},
	{"2.3: no comma after a user", `[["doveadmResponse",{"alice":{"uid":"1"}},"0"]["doveadmResponse",{"bob":{"uid":"1"}},"1"]]`,
		[]string{`{"alice":{"uid":"1"}}`, `{"bob":{"uid":"1"}}`}},
	{"2.3: no comma before what was not run", `[["doveadmResponse",[],"0"]["error",{"type":"unknownMethod", "exitCode":0},"1"]["error",{"type":"invalidRequest", "exitCode":0},"2"],["doveadmResponse",[],"3"]]`,
		[]string{`[]`, "unknownMethod", "invalidRequest", `[]`}},
	{"not allowed", `[["error",{"type":"unAuthorized", "exitCode":0},"0"]]`, []string{"unAuthorized"}},
	{"another order", `[["doveadmResponse",["b"],"1"],["doveadmResponse",["a"],"0"]]`, []string{`["a"]`, `["b"]`}},
	{"blanks and line ends", " [\r\n [ \"doveadmResponse\" , [ ] , \"0\" ] , \n\t[\"error\",{\"type\":\"exitCode\",\"exitCode\":75},\"1\"]\n] \n", []string{`[ ]`, "exit 75"}},
	{"brackets and quotes in strings", `[["doveadmResponse",[{"value":"]]}\"[{\\"}],"0"],["doveadmResponse",[{"value":"\\\\\"],\"1\"]"}],"1"]]`,
		[]string{`[{"value":"]]}\"[{\\"}]`, `[{"value":"\\\\\"],\"1\"]"}]`}},
	{"the tags are lost", `[["doveadmResponse",["a"]],["error",{"type":"exitCode","exitCode":68},""],["doveadmResponse",["c"],null]]`,
		[]string{`["a"]`, "exit 68", `["c"]`}},
	{"one tag is lost", `[["doveadmResponse",["a"],"0"],["doveadmResponse",["b"]]]`, []string{`["a"]`, `["b"]`}},
	{"a reply and its tag are lost", `[["doveadmResponse",["a"],"0"],["doveadmResponse",["b or c"]]]`, []string{`["a"]`, "none", "none"}},
	{"one reply less", `[["doveadmResponse",["a"],"0"],["doveadmResponse",["c"],"2"]]`, []string{`["a"]`, "none", `["c"]`}},
	{"a reply twice", `[["doveadmResponse",["a"],"0"],["doveadmResponse",["a"],"0"]]`, []string{`["a"]`}},
	{"a reply twice, not the same", `[["doveadmResponse",["a"],"0"],["doveadmResponse",["b"],"0"],["doveadmResponse",["b"],"1"]]`, []string{"none", `["b"]`}},
	{"a reply thrice, one not the same", `[["error",{"type":"exitCode","exitCode":67},"0"],["error",{"type":"exitCode","exitCode":75},"0"],["error",{"type":"exitCode","exitCode":75},"0"]]`, []string{"none"}},
	{"tags that nobody gave", `[["doveadmResponse",["a"],"2"],["doveadmResponse",["a"],"-1"],["doveadmResponse",["a"],"99999999999999999999"],["doveadmResponse",["a"],"x"],["doveadmResponse",["a"],"01"],["doveadmResponse",["a"],"+1"],["doveadmResponse",["a"],"0 "]]`,
		[]string{"none", "none"}},
	{"no tag, and more replies than commands", `[["doveadmResponse",["a"]],["doveadmResponse",["b"]]]`, []string{"none"}},
}

func read(in io.Reader) (replies []reply, err error) {
	err = readReplies(in, func(r reply) { replies = append(replies, r) })
	return replies, err
}

func TestAnswersAndTheirReplies(t *testing.T) {
	for _, a := range answers {
		for way, in := range map[string]io.Reader{"at once": strings.NewReader(a.text), "bytewise": iotest.OneByteReader(strings.NewReader(a.text)),
			"with its end": iotest.DataErrReader(strings.NewReader(a.text))} {
			replies, err := read(in)
			var got []string
			for _, r := range match(replies, len(a.want)) {
				got = append(got, told(r))
			}
			if err != nil || fmt.Sprintf("%q", got) != fmt.Sprintf("%q", a.want) {
				t.Errorf("%s, read %s: %q (%v); want %q", a.name, way, got, err, a.want)
			}
		}
	}
}

// Whatever is cut off, what was whole counts, and for its own command.
func TestAnAnswerCutAtAnyByte(t *testing.T) {
	broken := errors.New("the network is gone")
	for _, a := range answers {
		for i := range len(strings.TrimRight(a.text, " \n")) {
			_, cutOff := read(strings.NewReader(a.text[:i]))
			if wanted := i > 0 && strings.TrimSpace(a.text[:i]) != ""; wanted && !errors.Is(cutOff, errCut) || !wanted && !errors.Is(cutOff, errNotJSON) {
				t.Errorf("%s, cut at %d: %v", a.name, i, cutOff)
			}
			replies, err := read(io.MultiReader(strings.NewReader(a.text[:i]), iotest.ErrReader(broken)))
			if !errors.Is(err, broken) {
				t.Errorf("%s, broken at %d: %v", a.name, i, err)
			}
			if a.name == "a reply twice, not the same" || a.name == "a reply thrice, one not the same" || strings.HasPrefix(a.name, "no tag") {
				continue // until the second comes, the first is a reply like any
			}
			for n, r := range match(replies, len(a.want)) {
				if r != nil && told(r) != a.want[n] {
					t.Errorf("%s, cut at %d: command %d got %s; want %s or none", a.name, i, n, told(r), a.want[n])
				}
			}
		}
	}
}

func TestAnswersThatAreNone(t *testing.T) {
	for _, text := range []string{
		"", " ", "x", "{}", `"a"`, "null", "<html>404</html>", "* OK Dovecot ready.\r\n", "\x15\x03\x01\x00\x02\x02\x16",
		"[]]", "[] x", "[][]", "[{}]", "[1]", `["doveadmResponse",[],"0"]`, "[[]]", "[[1]]", `[["doveadmResponse"]]`, "[[1,2,3]]", `[[null,[],"0"]]`,
		`[["doveadmResponse",[,"0"]]`, `[["doveadmResponse",[}},"0"]]`, `[["doveadmResponse",[]"0"]]`, `[["success",[],"0"]]`,
		`[["error",[],"0"]]`, `[["error",{},"0"]]`, `[["error",{"type":1},"0"]]`, `[["error",{"type":"doveadmResponse"},"0"]]`, `[["error",{"type":"exitCode","exitCode":"x"},"0"]]`,
		"[[" + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + "]]",
	} {
		if replies, err := read(strings.NewReader(text)); !errors.Is(err, errNotJSON) || len(err.Error()) > 500 {
			t.Errorf("%.60q: %d replies, %v; want that it is not one", text, len(replies), err)
		}
	}
}

func TestAReplyThatIsTooLong(t *testing.T) {
	long := `["doveadmResponse",[{"value":"` + strings.Repeat(`\"]`, maxReply/3) + `"}],"1"]`
	text := `[["doveadmResponse",["a"],"0"],` + long + `,["doveadmResponse",["c"],"2"]]`
	replies, err := read(strings.NewReader(text))
	if err != nil || len(replies) != 3 {
		t.Fatalf("%d replies, %v", len(replies), err)
	}
	found := match(replies, 3)
	if told(found[0]) != `["a"]` || told(found[1]) != "long" || told(found[2]) != `["c"]` {
		t.Errorf("got %.80q", []string{told(found[0]), told(found[1]), told(found[2])})
	}
	if _, err := found[1].value(); imapmeta.KindOf(err) != imapmeta.User || !strings.Contains(err.Error(), "more than 262144 bytes") {
		t.Errorf("its value: %v", err)
	}
	// Its tag is not known: with a reply missing, nor is whose it is.
	replies, err = read(strings.NewReader(`[["doveadmResponse",["a"],"0"],` + long + `]`))
	if found := match(replies, 3); err != nil || told(found[1]) != "none" || told(found[2]) != "none" {
		t.Errorf("with one missing: %s, %s (%v)", told(found[1]), told(found[2]), err)
	}
	// That it is too long is known before its end, wherever that is.
	replies, err = read(&bounded{r: strings.NewReader(`[` + long + `]`), left: maxReply + 10})
	if !errors.Is(err, errLong) || len(replies) != 1 || told(match(replies, 1)[0]) != "long" {
		t.Errorf("of an answer that is too long as well: %d replies, %v", len(replies), err)
	}
	// The longest that is not.
	short := `["doveadmResponse",[{"value":"` + strings.Repeat("x", maxReply-len(`["doveadmResponse",[{"value":""}],"0"]`)) + `"}],"0"]`
	replies, err = read(strings.NewReader(`[` + short + `]`))
	if err != nil || len(replies) != 1 || replies[0].long {
		t.Errorf("a reply of %d bytes: %d replies, %v", len(short), len(replies), err)
	}
}

func TestValuesInReplies(t *testing.T) {
	for data, want := range map[string]imapmeta.Value{
		`[{"value":""}]`: imapmeta.Absent,
		`[{"value":"user=alice\tx=\u0001t\\ é"}]`: "user=alice\tx=\x01t\\ é",
		`[{"value":"\u0000"}]`:                    "\x00",
	} {
		r := &reply{status: statusResponse, data: []byte(data)}
		if got, err := r.value(); err != nil || got != want {
			t.Errorf("%s: %q (%v)", data, string(got), err)
		}
	}
	// What tells no value must not be taken for an absent one: it would be
	// overwritten.
	for _, data := range []string{`[]`, `{}`, `null`, `[{}]`, `[null]`, `[{"value":null}]`, `[{"value":1}]`, `[{"value":"a"},{"value":"b"}]`, `""`,
		`{"alice":{"uid":"1"}}`} {
		r := &reply{status: statusResponse, data: []byte(data)}
		if got, err := r.value(); err == nil || imapmeta.KindOf(err) != imapmeta.Retry {
			t.Errorf("%s: %q (%v)", data, string(got), err)
		}
	}
}

func TestTheBoundOfWhatIsRead(t *testing.T) {
	in := &bounded{r: strings.NewReader("0123456789"), left: 4}
	text, err := io.ReadAll(in)
	if string(text) != "0123" || !errors.Is(err, errLong) {
		t.Errorf("%q, %v", text, err)
	}
}
