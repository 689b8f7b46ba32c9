package api

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"dovepush/agent"
)

var wishSchema = []string{"components", "schemas", "Wish"}

func TestBodiesThatAreTaken(t *testing.T) {
	s := start(t, "unix")
	var last agent.Request
	s.agent.asked = func(r agent.Request) { last = r }
	for body, want := range map[string]agent.Request{
		``:                                     {},
		`{}`:                                   {},
		" \r\n\t{ } \n":                        {},
		`{"force":false}`:                      {},
		`{"force":true}`:                       {Force: true},
		`{"identity":"Ä \""}`:                  {Identity: `Ä "`},
		`{"identity":"\u00e9 \ud83d\ude00\t"}`: {Identity: "é 😀\t"},
		`{"expires_in":"1s"}`:                  {Expires: 1e9},
		`{"expires_in":"1m0.5s"}`:              {Expires: 60.5e9},
		`{"expires_in":"+2h"}`:                 {Expires: 7200e9},
	} {
		s.want(202, "PUT", alice, body)
		want.User = "alice"
		if last != want {
			t.Errorf("%s: asked for %+v", body, last)
		}
	}
}

// TestBodiesThatAreRefused also has openapi.json refuse them, unless the case
// says that a schema cannot tell.
func TestBodiesThatAreRefused(t *testing.T) {
	s := start(t, "unix")
	s.agent.asked = func(r agent.Request) {
		if r.Identity != "\x00" && len(r.Identity) < 1000 {
			t.Errorf("asked for %+v", r)
		}
	}
	for _, row := range []struct {
		body   string
		beyond bool // what a schema can tell
	}{
		{body: `null`}, {body: `[]`}, {body: `"a"`}, {body: `1`}, {body: `true`},
		{body: `{`}, {body: `{"force":true`}, {body: `{"force":true,}`}, {body: `{force:true}`}, {body: `{'force':true}`},
		{body: `{} {}`}, {body: `{}{`}, {body: `{}x`}, {body: " "}, {body: "\xef\xbb\xbf{}"}, {body: "\x00"},
		{body: strings.Repeat(`[`, 20_000)}, {body: strings.Repeat(`{"a":`, 12_000)},
		{body: `{"unknown":1}`}, {body: `{"":""}`}, {body: `{"user":"bob"}`},
		{body: `{"Force":true}`}, {body: `{"IDENTITY":"a"}`},
		{body: `{"force":true,"force":false}`, beyond: true}, {body: `{"force":true,"f\u006frce":true}`, beyond: true},
		{body: `{"force":null}`}, {body: `{"force":1}`}, {body: `{"force":"true"}`}, {body: `{"force":{}}`}, {body: `{"force":[true]}`},
		{body: `{"identity":null}`}, {body: `{"identity":""}`}, {body: `{"identity":3}`}, {body: `{"identity":["a"]}`}, {body: `{"identity":1e999}`},
		{body: "{\"identity\":\"\xff\"}", beyond: true}, {body: `{"identity":"\ud800"}`, beyond: true},
		{body: `{"identity":"\u0000"}`}, {body: `{"identity":"` + strings.Repeat("a", 1020) + `"}`},
		{body: `{"identity":"` + strings.Repeat("é", 600) + `"}`, beyond: true},
		{body: `{"expires_in":720}`}, {body: `{"expires_in":"720"}`}, {body: `{"expires_in":""}`}, {body: `{"expires_in":"30d"}`},
		{body: `{"expires_in":null}`}, {body: `{"expires_in":"-1h"}`}, {body: `{"expires_in":"0"}`},
		{body: `{"expires_in":"0s"}`, beyond: true}, {body: `{"expires_in":"999ms"}`, beyond: true},
		{body: `{"expires_in":"99999999h"}`, beyond: true},
	} {
		s.want(400, "PUT", alice, row.body)
		if document.valid(row.body, wishSchema...) == nil != row.beyond {
			t.Errorf("%.100s: to openapi.json it is not as to the handler", row.body)
		}
	}
	s.want(404, "GET", alice, "")
}

func TestOnlyJSONIsTaken(t *testing.T) {
	s := start(t, "tcp")
	for kind, status := range map[string]int{
		"application/json":                  202,
		"Application/JSON":                  202,
		"application/json; charset=UTF-8":   202,
		`application/json;charset="utf-8"`:  202,
		"":                                  415,
		"text/plain":                        415,
		"application/x-www-form-urlencoded": 415,
		"application/merge-patch+json":      415,
		"application/json; charset=latin1":  415,
		"application/json; profile=x":       415,
		"application/json;;;":               415,
		"json":                              415,
	} {
		s.want(status, "PUT", alice, "{}", "Content-Type", kind)
		s.want(202, "PUT", alice, "", "Content-Type", kind) // there is nothing that could be wrong
	}
	s.want(415, "PUT", alice, "{}", "Content-Encoding", "gzip")
	s.want(202, "PUT", alice, "{}", "Content-Encoding", "identity")
}

func TestMethodsThatTakeNoBody(t *testing.T) {
	s := start(t, "unix")
	s.want(202, "PUT", alice, "")
	s.want(400, "DELETE", alice, `{"force":true}`).holds(t, "query")
	s.want(400, "POST", alice+"/verify", `{}`)
	s.want(200, "GET", alice, "").holds(t, `"wanted":"present"`)
}

func TestParameters(t *testing.T) {
	s := start(t, "unix")
	s.want(202, "PUT", alice, "")
	s.agent.work = nil
	for target, status := range map[string]int{
		"PUT " + alice + "?wait=1ms":                                  202,
		"PUT " + alice + "?wait=%31ms":                                202,
		"PUT " + alice + "?":                                          202,
		"PUT " + alice + "?wait=":                                     400,
		"PUT " + alice + "?wait":                                      400,
		"PUT " + alice + "?wait=5":                                    400,
		"PUT " + alice + "?wait=0s":                                   400,
		"PUT " + alice + "?wait=-1s":                                  400,
		"PUT " + alice + "?wait=60.000000001s":                        400,
		"PUT " + alice + "?wait=1ms&wait=1ms":                         400,
		"PUT " + alice + "?wiat=1ms":                                  400,
		"PUT " + alice + "?force=true":                                400, // stands in the body
		"PUT " + alice + "?wait=1ms;x=1":                              400,
		"PUT " + alice + "?wait=%zz":                                  400,
		"PUT " + alice + "?%ff=1":                                     400,
		"DELETE " + alice + "?force":                                  400,
		"DELETE " + alice + "?force=1":                                400,
		"DELETE " + alice + "?force=TRUE":                             400,
		"DELETE " + alice + "?forced=true":                            400,
		"POST " + alice + "/verify?force=true":                        400,
		"GET " + alice + "?wait=1s":                                   400,
		"GET " + alice + "?server=main":                               200,
		"GET " + alice + "?server=%ff":                                400,
		"GET " + registrations + "?wait=1s":                           400,
		"GET " + registrations + "?state=none":                        400,
		"GET " + registrations + "?limit=0":                           400,
		"GET " + registrations + "?limit=1001":                        400,
		"GET " + registrations + "?limit=-1":                          400,
		"GET " + registrations + "?limit=%2B1":                        400,
		"GET " + registrations + "?limit=1e2":                         400,
		"GET " + registrations + "?limit=" + strings.Repeat("9", 400): 400,
		"GET " + registrations + "?server=%00":                        400,
		"GET " + registrations + "?state=&server=&after=&limit=":      200,
		"GET /healthz?now":                                            200, // what probes append does not matter
	} {
		method, path, _ := strings.Cut(target, " ")
		s.want(status, method, path, "")
	}
}

// TestUserNames sends each name percent-encoded as a whole, and so that only
// what must be encoded is: either way that user is meant, or nobody.
func TestUserNames(t *testing.T) {
	everywhere(t, func(t *testing.T, network string) {
		s := start(t, network)
		for name, status := range map[string]int{
			"alice":                   202,
			"alice@example.com":       202,
			"a/b":                     202,
			"a//b":                    202,
			"/":                       202,
			"a/":                      202,
			"verify":                  202,
			"a/verify":                202,
			".":                       202,
			"...":                     202,
			"a b+c%20":                202,
			"ä€😀":                     202,
			"{user}":                  202,
			`"<\^|>`:                  202,
			"a?b#c;d=e&f":             202,
			strings.Repeat("a", 512):  202,
			"..":                      400,
			"../alice":                400,
			"a/../b":                  400,
			"a@..":                    400,
			"":                        400,
			"a\x00":                   400,
			"a\r\nb":                  400,
			"\xff":                    400,
			strings.Repeat("a", 513):  400,
			strings.Repeat("ä", 1024): 400,
			"alice@elsewhere.test":    400,
		} {
			var asked []string
			s.agent.asked = func(r agent.Request) { asked = append(asked, r.User) }
			whole := ""
			for i := range len(name) {
				whole += fmt.Sprintf("%%%02x", name[i])
			}
			for _, segment := range []string{url.PathEscape(name), whole} {
				got := s.want(status, "PUT", registrations+"/"+segment, "")
				shown, _ := json.Marshal(name)
				if status == 202 {
					if !strings.HasPrefix(strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&").Replace(got.body),
						`{"user":`+strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&").Replace(string(shown))+`,`) {
						t.Errorf("%q: %s", name, got.body)
					}
					s.want(200, "GET", registrations+"/"+segment, "")
					s.want(202, "POST", registrations+"/"+segment+"/verify", "")
					s.want(204, "DELETE", registrations+"/"+segment+"?wait=5s", "")
				} else if name != "alice@elsewhere.test" {
					got.holds(t, "x-problems/bad-user")
					s.want(400, "GET", registrations+"/"+segment, "")
					s.want(400, "POST", registrations+"/"+segment+"/verify", "")
					s.want(400, "DELETE", registrations+"/"+segment, "")
				} else {
					got.holds(t, "x-problems/no-server")
				}
			}
			for _, user := range asked {
				if user != name {
					t.Errorf("%q became %q", name, user)
				}
			}
		}
		s.want(200, "GET", registrations, "").holds(t, `{"registrations":[]}`)
	})
}

// TestSlashesStayEncoded: url.URL would encode these paths anew, and take %2F
// for a slash.
func TestSlashesStayEncoded(t *testing.T) {
	s := start(t, "unix")
	for segment, name := range map[string]string{"a%2Fb|c": `a/b|c`, "x%2fverify^": "x/verify^", `a%2F\`: `a/\\`, "ä%2F": "ä/"} {
		s.want(202, "PUT", registrations+"/"+segment, "").holds(t, `{"user":"`+name+`",`)
	}
}

// TestPathsThatMeanNobody: nothing is cleaned, joined or redirected.
func TestPathsThatMeanNobody(t *testing.T) {
	s := start(t, "tcp")
	s.agent.asked = func(r agent.Request) { t.Errorf("asked for %+v", r) }
	for _, path := range []string{
		"/", "/v1", "/v1/", "/v1/registration", "/V1/registrations", "//v1/registrations", "/v1//registrations",
		registrations + "/a/b", registrations + "/a//b", registrations + "/a//verify", registrations + "/a/verify/",
		registrations + "/a/Verify", registrations + "/a/%76erify", registrations + "/a/b/verify", registrations + "//",
		registrations + "/../registrations/alice", "/./healthz", "/healthz/", "/x/../healthz", registrations + "%2Falice",
		registrations + "/../../../etc/passwd", "/%7Buser%7D", "*",
	} {
		for _, method := range []string{"GET", "PUT", "DELETE", "POST"} {
			s.want(404, method, path, "")
		}
	}
	s.want(400, "GET", registrations+"/", "")
	s.want(400, "GET", registrations+"/..", "")
	s.want(400, "POST", registrations+"//verify", "")
}

func TestMethodsThatThereAreNot(t *testing.T) {
	s := start(t, "tcp")
	for path, allow := range map[string]string{
		alice:              "DELETE, GET, HEAD, PUT",
		alice + "/verify":  "POST",
		registrations:      "GET, HEAD",
		"/v1/openapi.json": "GET, HEAD",
		"/healthz":         "GET, HEAD",
		"/readyz":          "GET, HEAD",
		"/metrics":         "GET, HEAD",
	} {
		for _, method := range []string{"PATCH", "OPTIONS", "TRACE", "get", "X"} {
			if got := s.want(405, method, path, ""); got.header.Get("Allow") != allow {
				t.Errorf("%s %s: Allow %q", method, path, got.header.Get("Allow"))
			}
		}
	}
	s.want(405, "HEAD", alice+"/verify", "")
	s.want(404, "OPTIONS", "*", "")
}
