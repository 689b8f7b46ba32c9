// Command rawnotify is the least that can take Dovecot's notifications: it
// decodes the JSON and forgets it. Benchmarks measure the service by it.
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
)

func main() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(l.Addr())
	err = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			User, Event, Folder    string
			UIDValidity            uint32 `json:"imap-uidvalidity"`
			UID                    uint32 `json:"imap-uid"`
			From, Subject, Snippet string
			Unseen                 int64
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
	}))
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
