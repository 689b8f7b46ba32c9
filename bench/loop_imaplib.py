"""Sets the entry of each user on standard input: HOST PORT ENTRY set|look."""
import imaplib
import os
import sys

host, port, entry, mode = sys.argv[1:]
master, password = os.environ["BENCH_MASTER"], os.environ["BENCH_PASSWORD"]
for user in sys.stdin.read().split():
    wanted = "user=" + user
    imap = imaplib.IMAP4(host, int(port))
    imap.login(user + "*" + master, password)
    if mode == "set":
        status, reply = imap.xatom("SETMETADATA", '""', '(%s "%s")' % (entry, wanted))
        if status != "OK":
            sys.exit("%s: %s" % (user, reply))
    else:
        status, reply = imap.xatom("GETMETADATA", '""', entry)
        if status != "OK" or wanted not in str(imap.response("METADATA")):
            sys.exit("%s: %s %s" % (user, status, reply))
    imap.logout()
