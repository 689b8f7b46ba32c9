package notify

import (
	"log/slog"
	"net/http"
	"time"
)

// Bounds of what a connection may take.
const (
	headerTime = 5 * time.Second  // for the head of a request
	readTime   = 10 * time.Second // for a whole request of at most 64 KiB
	idleTime   = 90 * time.Second // between two requests on a connection
	// writeTime is for work and answer: Options.Accept twice, for one that
	// comes again waits for the first, and time to send.
	writeTime = readTime + 2*acceptTime + 10*time.Second
	maxHeader = 16 << 10 // of a request, in bytes
)

// Server returns an http.Server for the handler that slow clients cannot keep
// busy. How many connections there may be is for the listener to bound, see
// [Bound]; each takes some 20 KiB, however little it sends. What goes wrong
// between it and a client is logged at debug: strangers decide how often.
func Server(handler http.Handler, log *slog.Logger) *http.Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: headerTime,
		ReadTimeout:       readTime,
		WriteTimeout:      writeTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		ConnContext:       remember,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		// OPTIONS * has its answer from the handler, like everything else.
		DisableGeneralOptionsHandler: true,
	}
}
