# worker.sh [SIGNAL]: have the server reload, and wait until it has started a worker. That is how nginx
# and Apache show that they have taken a configuration; if they refuse it, there is none.
children=/proc/$MAINPID/task/$MAINPID/children
read -r server < "/proc/$MAINPID/comm"
old=
if [ "$1" ]; then
    read -r old < "$children"
    kill "-$1" "$MAINPID"
fi
for _ in $(seq 100); do
    for pid in $(cat "$children"); do
        case " $old " in *" $pid "*) continue ;; esac
        # not one of Apache's loggers
        [ "$(cat "/proc/$pid/comm")" = "$server" ] && exit
    done
    sleep 0.1
    [ -e "$children" ] || break
done
echo "no new worker: configuration refused" >&2
exit 1
