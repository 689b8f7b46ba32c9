// Command rawhttp is the least that can be done to bring entries into Dovecot
// over its DoveAdm HTTP API, for the benchmark to hold dovepush against: a POST
// for many users, in one write, on a connection of its own, as Dovecot takes no
// second one; the answer read to the end and held against what it must be. It
// keeps no record, retries nothing, and stops at a failure.
package main

import (
	"bufio"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
)

const entry = "/private/vendor/vendor.dovecot/http-notify"

// What a reply says before and after the value, without which set has to be.
// Behind after comes the tag.
const (
	getBefore, getAfter = `["doveadmResponse",[{"value":"`, `"}],`
	setBefore, setAfter = `["doveadmResponse",[`, `],`
)

type client struct {
	address, header string
	set             bool // write the entries; otherwise they must be right already
	two             bool // read before writing, and write what is not right
}

// users sees to the entries of some users.
func (c client) users(users []string) error {
	if !c.set || c.two {
		answer, err := c.post(commands("mailboxMetadataGet", users))
		if err != nil {
			return err
		}
		have, err := values(answer, getBefore, getAfter, len(users))
		if err != nil {
			return err
		}
		var wrong []string
		for i, user := range users {
			if have[i] != "user="+user {
				wrong = append(wrong, user)
			}
		}
		if !c.set && len(wrong) > 0 {
			return fmt.Errorf("the entry of %s is not right: %q", wrong[0], have[slices.Index(users, wrong[0])])
		}
		users = wrong
	}
	if len(users) == 0 || !c.set {
		return nil
	}
	answer, err := c.post(commands("mailboxMetadataSet", users))
	if err != nil {
		return err
	}
	_, err = values(answer, setBefore, setAfter, len(users))
	return err
}

// commands is one for each user; its tag is the user's place. The names are
// such that JSON writes them as they are.
func commands(method string, users []string) string {
	var b strings.Builder
	begin := "["
	for i, user := range users {
		b.WriteString(begin + `["` + method + `",{"user":"` + user + `","mailbox":"","allowEmptyMailboxName":true,"key":"` + entry)
		begin = ","
		if method == "mailboxMetadataSet" {
			b.WriteString(`","value":"user=` + user)
		}
		b.WriteString(`"},"` + strconv.Itoa(i) + `"]`)
	}
	return b.String() + "]"
}

// values are what n replies hold. Each must be good and in its place, and
// nothing may follow.
func values(answer, before, after string, n int) ([]string, error) {
	list := make([]string, n)
	rest, begin := answer, "["
	for i := range n {
		reply, good := strings.CutPrefix(rest, begin+before)
		value, more, ended := strings.Cut(reply, after+`"`+strconv.Itoa(i)+`"]`)
		if !good || !ended || before == setBefore && value != "" {
			return nil, fmt.Errorf("reply %d is not OK: %.200q", i, rest)
		}
		list[i], rest, begin = value, more, ","
	}
	if rest != "]" {
		return nil, fmt.Errorf("it goes on after the end: %.200q", rest)
	}
	return list, nil
}

// post makes one request and returns the answer's body. It does not say
// "Connection: close", though that is how it is: with it Dovecot 2.3.19 and
// 2.4.1 do not answer at all to a key that is wrong.
func (c client) post(body string) (string, error) {
	conn, err := net.Dial("tcp", c.address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, c.header+strconv.Itoa(len(body))+"\r\n\r\n"+body); err != nil {
		return "", err
	}
	got, err := io.ReadAll(conn)
	if err != nil {
		return "", fmt.Errorf("%w after %.200q", err, got)
	}
	header, answer, whole := strings.Cut(string(got), "\r\n\r\n")
	if !whole || !strings.HasPrefix(header, "HTTP/1.1 200 ") {
		return "", fmt.Errorf("the answer is not OK: %.200q", got)
	}
	return answer, nil
}

// Users come on standard input, one a line.
func main() {
	log.SetFlags(0)
	var c client
	api := flag.String("url", "", "`URL` of the API")
	flag.BoolVar(&c.set, "set", false, "write the entries")
	flag.BoolVar(&c.two, "two", false, "read first, then write")
	connections := flag.Int("connections", 4, "how many at once")
	size := flag.Int("batch", 100, "how many users in one POST")
	flag.Parse()
	at, err := url.Parse(*api)
	if err != nil || at.Scheme != "http" || *size < 1 || *connections < 1 {
		log.Fatalf("-url %q, -batch %d, -connections %d", *api, *size, *connections)
	}
	c.address = at.Host
	c.header = "POST " + at.Path + " HTTP/1.1\r\nHost: " + at.Host + "\r\nAuthorization: X-Dovecot-API " +
		base64.StdEncoding.EncodeToString([]byte(os.Getenv("BENCH_API_KEY"))) +
		"\r\nContent-Type: application/json\r\nContent-Length: "

	batches, failures := make(chan []string), make(chan error, 1)
	var all sync.WaitGroup
	for range *connections {
		all.Go(func() {
			for users := range batches {
				if err := c.users(users); err != nil {
					select {
					case failures <- fmt.Errorf("%s to %s: %w", users[0], users[len(users)-1], err):
					default: // the first will do
					}
				}
			}
		})
	}
	lines := bufio.NewScanner(os.Stdin)
	var batch []string
	for lines.Scan() && len(failures) == 0 {
		if batch = append(batch, lines.Text()); len(batch) == *size {
			batches <- batch
			batch = nil
		}
	}
	if len(batch) > 0 && len(failures) == 0 {
		batches <- batch
	}
	close(batches)
	all.Wait()
	close(failures)
	if err := errors.Join(lines.Err(), <-failures); err != nil {
		log.Fatal(err)
	}
}
