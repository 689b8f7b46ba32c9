package doveadm

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dovepush/imapmeta"
	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

// benchRounds is how often each contender has its turn.
const benchRounds = 3

// benchUsers is how many users a turn has, by the size of a batch, so that it
// takes about a second or two.
var benchUsers = []struct{ batch, users int }{{1, 100}, {10, 600}, {100, 1600}, {1000, 4000}}

// raw is the fastest client of the API that we can think of: it sends ready
// POSTs over so many connections, and looks whether as many replies come as
// there were commands.
type raw struct {
	address string
	posts   [][]byte
	replies []int // to each
}

// rawPosts are POSTs of so many commands each.
func rawPosts(b *testing.B, s *dovecot.Server, batch int, commands []command) *raw {
	b.Helper()
	u, err := url.Parse(s.DoveadmURL)
	if err != nil {
		b.Fatal(err)
	}
	r := &raw{address: u.Host}
	for part := range slices.Chunk(commands, batch) {
		text, err := body(calls(part...))
		if err != nil {
			b.Fatal(err)
		}
		r.posts = append(r.posts, fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nAuthorization: X-Dovecot-API %s\r\nContent-Length: %d\r\n\r\n%s",
			u.Path, u.Host, base64.StdEncoding.EncodeToString([]byte(s.APIKey)), len(text), text))
		r.replies = append(r.replies, len(part))
	}
	return r
}

func (r *raw) send(b *testing.B, connections int) {
	var next atomic.Int64
	var all sync.WaitGroup
	for range connections {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(r.posts); i = int(next.Add(1)) - 1 {
				if err := r.post(i); err != nil {
					b.Error(err)
				}
			}
		})
	}
	all.Wait()
}

func (r *raw) post(i int) error {
	conn, err := net.Dial("tcp", r.address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write(r.posts[i]); err != nil {
		return err
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	if n := bytes.Count(answer, []byte(`"doveadmResponse"`)); n != r.replies[i] {
		return fmt.Errorf("%d replies to %d commands: %.200q", n, r.replies[i], answer)
	}
	return nil
}

// connector has so many goroutines take one user after the other.
func connector(b *testing.B, goroutines int, users []string, do func(user string) error) {
	var next atomic.Int64
	var all sync.WaitGroup
	for range min(goroutines, len(users)) {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(users); i = int(next.Add(1)) - 1 {
				if err := do(users[i]); err != nil {
					b.Error(err)
				}
			}
		})
	}
	all.Wait()
}

// BenchmarkDoveadm compares the connector with the raw client, in turns: get is
// an Update that keeps what is there, set a change alone, update both.
func BenchmarkDoveadm(b *testing.B) {
	names := several(4000)
	for _, version := range dovecot.Versions() {
		b.Run(string(version), func(b *testing.B) {
			s := dovecottest.Start(b, dovecot.Options{Version: version, Users: named(names...)})
			commands := func(m method, users []string) []command {
				list := make([]command, len(users))
				for i, user := range users {
					list[i] = command{method: m, user: user}
					if m == set {
						list[i].value = "user=" + user
					}
				}
				return list
			}
			rawPosts(b, s, 100, commands(set, names)).send(b, 4) // now they all have a mailbox
			for _, size := range benchUsers {
				for _, connections := range []int{1, 2, 4} {
					users, goroutines := names[:size.users], max(16, 2*size.batch*connections)
					c := on(b, s, batchOf(size.batch), func(o *Options) {
						o.MaxConnections, o.ReadTimeout, o.Timeout = connections, time.Minute, 2*time.Minute
					})
					gets, sets := rawPosts(b, s, size.batch, commands(get, users)), rawPosts(b, s, size.batch, commands(set, users))
					for _, kind := range []struct {
						name string
						raw  []*raw
						ours func(user string) error
					}{
						{"get", []*raw{gets}, func(user string) error {
							_, err := c.Update(b.Context(), user, keepIt)
							return err
						}},
						{"set", []*raw{sets}, func(user string) error {
							_, err := c.doAlone(b.Context(), command{method: set, user: user, value: "user=" + user})
							return err
						}},
						{"update", []*raw{gets, sets}, func(user string) error {
							_, err := c.Update(b.Context(), user, setTo(imapmeta.Value("user="+user)))
							return err
						}},
					} {
						b.Run(fmt.Sprintf("batch=%d/connections=%d/%s", size.batch, connections, kind.name), func(b *testing.B) {
							compare(b, len(users), func() {
								connector(b, goroutines, users, kind.ours)
							}, func() {
								for _, r := range kind.raw {
									r.send(b, connections)
								}
							})
						})
					}
				}
			}
		})
	}
}

// compare reports the medians of two contenders' speeds, and of the ratio of
// each round.
func compare(b *testing.B, users int, ours, raw func()) {
	var speeds, raws, ratios []float64
	measure := func(f func()) float64 {
		began := time.Now()
		f()
		return float64(users) / time.Since(began).Seconds()
	}
	for n := range b.N * benchRounds {
		var mine, theirs float64
		if n%2 == 0 { // who goes first has no advantage
			mine, theirs = measure(ours), measure(raw)
		} else {
			theirs, mine = measure(raw), measure(ours)
		}
		speeds, raws, ratios = append(speeds, mine), append(raws, theirs), append(ratios, mine/theirs)
	}
	median := func(list []float64) float64 {
		slices.Sort(list)
		return list[len(list)/2]
	}
	b.ReportMetric(median(speeds), "users/s")
	b.ReportMetric(median(raws), "raw-users/s")
	b.ReportMetric(median(ratios), "of-raw")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkWaiting tells what a call costs that waits for an endpoint which
// hangs, beyond the goroutine that any caller is.
func BenchmarkWaiting(b *testing.B) {
	const n = 100_000
	for range b.N {
		var d *dummy
		d = play(b, onPost(func(_ http.ResponseWriter, r *http.Request, _ []command) bool { d.hang(r); return true }))
		c := to(b, []*dummy{d}, func(o *Options) { o.ReadTimeout, o.Timeout = time.Hour, 3*time.Hour })
		users := several(n)
		var idle, idleStack float64
		for range 2 { // the runtime keeps what it knows goroutines by: the first do not count
			enough := make(chan struct{})
			idle, idleStack = grown(n, func(started func()) {
				started()
				<-enough
			})
			close(enough)
		}
		ctx, cancel := context.WithCancel(b.Context())
		var next atomic.Int64
		var all sync.WaitGroup
		all.Add(n)
		heap, stack := grown(n, func(started func()) {
			defer all.Done()
			started()
			c.Update(ctx, users[next.Add(1)-1], keepIt)
		}, func() bool { return c.waiting() > n-2*c.options.Batch })
		cancel()
		all.Wait()
		b.ReportMetric((heap-idle)/n, "heap-B/call")
		b.ReportMetric((stack-idleStack)/n, "more-stack-B/call")
		b.ReportMetric(idle/n, "bare-heap-B/goroutine")
		b.ReportMetric(idleStack/n, "bare-stack-B/goroutine")
		b.ReportMetric(0, "ns/op")
		closed(b, c)
	}
}

// grown starts n goroutines and tells how much memory they take, heap and
// stacks, when all have started and until holds.
func grown(n int, f func(started func()), until ...func() bool) (heap, stack float64) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&before)
	var started sync.WaitGroup
	started.Add(n)
	for range n {
		go f(started.Done)
	}
	started.Wait()
	for _, until := range until {
		for !until() {
			time.Sleep(10 * time.Millisecond)
		}
	}
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	return float64(after.HeapAlloc) - float64(before.HeapAlloc), float64(after.StackInuse) - float64(before.StackInuse)
}
