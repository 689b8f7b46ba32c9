// Command raw is the least that can be done to bring entries into Dovecot, for
// the benchmark to hold dovepush against: one connection a user, the commands
// in as few writes as they fit in, the replies read to the end and held
// against what they must be. It keeps no record, retries nothing, and stops at
// a failure.
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
	"os"
	"strings"
	"sync"
)

const entry = "/private/vendor/vendor.dovecot/http-notify"

type client struct {
	address, master, password string
	login                     bool // LOGIN user*master, not AUTHENTICATE PLAIN
	set                       bool // write the entry; otherwise it must be right already
	two                       bool // read before writing, as one must who decides by what is there
}

// user has one user's connection, from the first packet to the last.
func (c client) user(user string) error {
	conn, err := net.Dial("tcp", c.address)
	if err != nil {
		return err
	}
	defer conn.Close()
	first := "a AUTHENTICATE PLAIN " + base64.StdEncoding.EncodeToString([]byte(user+"\x00"+c.master+"\x00"+c.password)) + "\r\n"
	if c.login {
		first = "a LOGIN " + user + "*" + c.master + " " + c.password + "\r\n"
	}
	first += "b GETMETADATA \"\" " + entry + "\r\n"
	then, tags := "d LOGOUT\r\n", "abd"
	if c.set {
		then, tags = "c SETMETADATA \"\" ("+entry+" \"user="+user+"\")\r\n"+then, "abcd"
	}
	steps := []string{first + then}
	if c.two {
		steps = []string{first, then}
	}
	in, got := bufio.NewReader(conn), "\n"
	for i, step := range steps {
		if _, err := io.WriteString(conn, step); err != nil {
			return err
		}
		last := "d "
		if i < len(steps)-1 {
			last = "b "
		}
		for line := ""; !strings.HasPrefix(line, last); got += line {
			if line, err = in.ReadString('\n'); err != nil {
				return fmt.Errorf("%w after %q", err, got)
			}
		}
	}
	if _, err := in.ReadByte(); err != io.EOF {
		return fmt.Errorf("it goes on after the end (%v): %q", err, got)
	}
	for _, tag := range strings.Split(tags, "") {
		if !strings.Contains(got, "\n"+tag+" OK ") {
			return fmt.Errorf("%s is not OK: %q", tag, got)
		}
	}
	if !c.set && !strings.Contains(got, "user="+user) {
		return fmt.Errorf("the entry is not right: %q", got)
	}
	return nil
}

// Users come on standard input, one a line.
func main() {
	log.SetFlags(0)
	c := client{master: os.Getenv("BENCH_MASTER"), password: os.Getenv("BENCH_PASSWORD")}
	flag.StringVar(&c.address, "address", "", "`HOST:PORT` of IMAP")
	flag.BoolVar(&c.login, "login", false, "log in with LOGIN")
	flag.BoolVar(&c.set, "set", false, "write the entries")
	flag.BoolVar(&c.two, "two", false, "read first, then write")
	connections := flag.Int("connections", 16, "how many at once")
	flag.Parse()

	users, failures := make(chan string), make(chan error, 1)
	var all sync.WaitGroup
	for range *connections {
		all.Go(func() {
			for user := range users {
				if err := c.user(user); err != nil {
					select {
					case failures <- fmt.Errorf("%s: %w", user, err):
					default: // the first will do
					}
				}
			}
		})
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() && len(failures) == 0 {
		users <- lines.Text()
	}
	close(users)
	all.Wait()
	close(failures)
	if err := errors.Join(lines.Err(), <-failures); err != nil {
		log.Fatal(err)
	}
}
