package main

import (
	"context"
	"fmt"

	"dovepush/internal/dovecot"
)

// load is how a client uses the DoveAdm API.
type load struct {
	connections int // at once; each takes one POST
	batch       int // users in a POST
}

// standard is max_connections and batch as they come.
func standard() load { return load{4, 100} }

func (l load) String() string { return fmt.Sprintf("%d × %d", l.connections, l.batch) }

// named is a contender's name where there is one for each load.
func (l load) named(name string) string { return name + ", " + l.String() }

// leastLoad is how many users a load gets at least, in the table batches.
const leastLoad = 1200

// users is enough for all connections to have a whole batch.
func (l load) users() int { return max(leastLoad, l.connections*l.batch) }

// bothConnectors holds dovepush over DoveAdm and over IMAP against the least
// that can be done over DoveAdm. On Dovecot's stock settings IMAP has a process
// a login, and DoveAdm one a POST, as it has here with all settings.
func (b *bench) bothConnectors(ctx context.Context, v dovecot.Version) error {
	l := standard()
	what := fmt.Sprintf("DoveAdm on %d connections in batches of %d, IMAP on %d", l.connections, l.batch, connections)
	contenders := func(a *arena) []contender { return a.overBoth(l) }
	err := b.compare(ctx, v, comparison{what: what, yard: yardHTTP, users: b.users, contenders: contenders})
	if err != nil {
		return err
	}
	return b.compare(ctx, v, comparison{
		what: what + ", " + onStock, yard: yardHTTP, settings: stock, users: min(b.users, mostStock), contenders: contenders})
}

// overBoth is both connectors, and the raw clients for either.
func (a *arena) overBoth(l load) []contender {
	return []contender{
		a.dovepush(house, a.overDoveadm(l)),
		a.dovepush(house+", IMAP", a.overIMAP(connections)),
		a.rawHTTPClient(yardHTTP, l, "-set"),
		a.rawHTTPClient(yardHTTP+twoSteps, l, "-set", "-two"),
		a.rawClient("raw IMAP", connections, "-set"),
	}
}

// otherBatches shows which load is best, with the raw clients under the same.
func (b *bench) otherBatches(ctx context.Context, v dovecot.Version) error {
	var loads []load
	most := 0
	for _, batch := range []int{10, 100, 1000} {
		for _, connections := range []int{1, 2, 4} {
			l := load{connections, batch}
			loads, most = append(loads, l), max(most, l.users())
		}
	}
	a, err := newArena(ctx, b.programs, v, nil, min(b.users, most))
	if err != nil {
		return err
	}
	defer a.close()
	var contenders []contender
	for _, l := range loads {
		for _, c := range []contender{
			a.dovepush(l.named(house), a.overDoveadm(l)),
			a.rawHTTPClient(l.named(yardHTTP), l, "-set"),
			a.rawHTTPClient(l.named(yardHTTP+twoSteps), l, "-set", "-two"),
		} {
			c.most = l.users()
			contenders = append(contenders, c)
		}
	}
	first, again, err := b.inTurns(ctx, a, contenders)
	if err != nil {
		return err
	}
	const what = "DoveAdm under other loads"
	printLoads(b.tables, title(a, what, fromNothing), loads, first)
	printLoads(b.tables, title(a, what, allRight), loads, again)
	return nil
}
