package metrics

import (
	"context"
	"strings"
	"testing"
	"time"

	"dovepush/registry"
)

// receives is a service that takes notifications, and forwards them to "app"
// and "crm".
func receives(o *Options) {
	o.Receiving = &Receiving{
		Results: []string{"accepted", "duplicate", "path", "method", "credentials", "too_large", "media_type", "malformed", "forged", "spool", "slow", "internal"},
		Proven: func(_ context.Context, since time.Time) ([]registry.ProvenCount, error) {
			if !since.Equal(noon.Add(-lately)) {
				return nil, errDisk
			}
			return []registry.ProvenCount{{Server: "main", Ever: 9, Lately: 7}, {Server: "gone", Ever: 1}}, nil
		},
		Watchers: func() (int, int64) { return 3, 2 },
		Webhooks: func(context.Context) ([]Webhook, error) {
			return []Webhook{{Name: "app", Waiting: 5, Dead: 4, Skipped: 3, Oldest: noon.Add(-90 * time.Second), Down: true}, {Name: "crm", Oldest: noon.Add(time.Hour)}, {Name: "app"}}, nil
		},
	}
}

func TestNotificationsAndWhatBecomesOfThemAreCounted(t *testing.T) {
	m := New(still(receives))
	m.Notified("accepted", 20*time.Millisecond)
	m.Notified("duplicate", 20*time.Millisecond)
	m.Notified("forged", time.Hour) // who makes us wait does not count as slow
	m.Notified("alice", 0)
	m.Proved("proven", 7)
	m.Proved("alice", 2)
	m.Delivered("app", "delivered", 30*time.Millisecond)
	m.Delivered("app", "alice", -time.Second)
	e := scrape(t, m)
	e.shows(t, exposition{
		`dovepush_notifications_total{result="accepted"}`:                             1,
		`dovepush_notifications_total{result="duplicate"}`:                            1,
		`dovepush_notifications_total{result="forged"}`:                               1,
		`dovepush_notifications_total{result="credentials"}`:                          0,
		`dovepush_notifications_total{result="other"}`:                                1,
		`dovepush_notification_duration_seconds_count`:                                2,
		`dovepush_notification_duration_seconds_bucket{le="0.025"}`:                   2,
		`dovepush_notification_duration_seconds_bucket{le="0.01"}`:                    0,
		`dovepush_proofs_total{proof="proven"}`:                                       7,
		`dovepush_proofs_total{proof="dropped"}`:                                      0,
		`dovepush_proofs_total{proof="other"}`:                                        2,
		`dovepush_registrations_proven{server="main"}`:                                9,
		`dovepush_registrations_proven_lately{server="main"}`:                         7,
		`dovepush_registrations_proven{server="old"}`:                                 0,
		`dovepush_registrations_proven{server="gone"}`:                                1,
		`dovepush_watchers`:                                                           3,
		`dovepush_watchers_dropped_total`:                                             2,
		`dovepush_webhook_up{webhook="app"}`:                                          0,
		`dovepush_webhook_up{webhook="crm"}`:                                          1,
		`dovepush_webhook_waiting{webhook="app"}`:                                     5,
		`dovepush_webhook_dead{webhook="app"}`:                                        4,
		`dovepush_webhook_skipped_total{webhook="app"}`:                               3,
		`dovepush_webhook_oldest_waiting_seconds{webhook="app"}`:                      90,
		`dovepush_webhook_oldest_waiting_seconds{webhook="crm"}`:                      0,
		`dovepush_webhook_deliveries_total{delivery="delivered",webhook="app"}`:       1,
		`dovepush_webhook_deliveries_total{delivery="other",webhook="app"}`:           1,
		`dovepush_webhook_deliveries_total{delivery="dead",webhook="crm"}`:            0,
		`dovepush_webhook_delivery_duration_seconds_count{webhook="app"}`:             2,
		`dovepush_webhook_delivery_duration_seconds_bucket{webhook="app",le="0.001"}`: 1,
	})
	if n := e.count("dovepush_webhook_up"); n != 2 {
		t.Errorf("%d webhooks are shown", n)
	}
}

func TestAServiceThatTakesNoNotificationsShowsNothingAboutThem(t *testing.T) {
	m := New(still())
	m.Notified("accepted", 0)
	m.Proved("proven", 1)
	m.Delivered("app", "delivered", 0)
	for series := range scrape(t, m) {
		for _, prefix := range []string{"dovepush_notif", "dovepush_proof", "dovepush_webhook", "dovepush_watch", "dovepush_registrations_proven"} {
			if strings.HasPrefix(series, prefix) {
				t.Errorf("%s is shown", series)
			}
		}
	}
}

func TestASpoolThatCannotBeReadCostsItsOwnSeriesOnly(t *testing.T) {
	m := New(still(receives, func(o *Options) {
		o.Receiving.Webhooks = func(ctx context.Context) ([]Webhook, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		o.Receiving.Proven = func(context.Context, time.Time) ([]registry.ProvenCount, error) { return nil, errDisk }
	}))
	e := scrape(t, m)
	e.lacks(t, "dovepush_webhook_waiting", "dovepush_registrations_proven")
	e.shows(t, exposition{
		`dovepush_watchers`:                           3,
		`dovepush_due{server="main"}`:                 0,
		`dovepush_registry_errors_total{op="spool"}`:  1,
		`dovepush_registry_errors_total{op="proven"}`: 1,
	})
}
