# Sets the entry of each user on standard input: CONFIG ENTRY set|look.
while read -r user; do
	if [ "$3" = set ]; then
		doveadm -c "$1" mailbox metadata set -u "$user" -s "" "$2" "user=$user" || exit
	else
		have=$(doveadm -c "$1" mailbox metadata get -u "$user" -s "" "$2") || exit
		[ "$have" = "user=$user" ] || { echo "$user: $have" >&2; exit 1; }
	fi
done
