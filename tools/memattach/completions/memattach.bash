# bash completion for memattach

_memattach_pids() {
    ps -u "$(id -u)" -o pid=,comm= 2>/dev/null | awk '$2 ~ /python|gunicorn|uwsgi|celery/ { print $1 }'
}

_memattach() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} word command=
    local i
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case $word in
        --)
            # The rest is a command with arguments of its own.
            COMPREPLY=($(compgen -c -- "$current") $(compgen -f -- "$current"))
            return
            ;;
        dump | doctor | report)
            [ "$i" = 1 ] && command=$word
            ;;
        esac
    done
    case $previous in
    -p | --pid)
        COMPREPLY=($(compgen -W "$(_memattach_pids)" -- "$current"))
        return
        ;;
    --metric)
        COMPREPLY=($(compgen -W "cpu wait allocated live peak" -- "$current"))
        return
        ;;
    -d | --duration)
        COMPREPLY=($(compgen -W "10s 30s 1m 5m" -- "$current"))
        return
        ;;
    --html | --json | --speedscope | --collapsed | -o | --outfile | --config)
        if [[ $current != -* ]]; then
            COMPREPLY=($(compgen -f -- "$current"))
            return
        fi
        ;;
    esac
    local outputs="--cli --html --json --speedscope --collapsed --metric --outfile --reduced-profile --quiet --no-color"
    case $command in
    dump) COMPREPLY=($(compgen -W "--pid --native --json --no-color --help" -- "$current")) ;;
    doctor) COMPREPLY=($(compgen -W "--pid --json --no-color --help" -- "$current")) ;;
    report)
        if [[ $current == -* ]]; then
            COMPREPLY=($(compgen -W "$outputs --help" -- "$current"))
        else
            COMPREPLY=($(compgen -f -- "$current"))
        fi
        ;;
    *)
        local commands=
        [ "$COMP_CWORD" = 1 ] && commands="dump doctor report"
        COMPREPLY=($(compgen -W "$commands --pid --subprocesses --duration --cpu --memory --gil --idle --native
            --threads --rate --malloc-threshold --max-overhead --blocking --profile-only --profile-exclude
            --profile-all $outputs --config --help --version --" -- "$current"))
        ;;
    esac
}
complete -o filenames -F _memattach memattach
