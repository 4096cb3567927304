# fish completion for memattach

function __memattach_pids
    ps -u (id -u) -o pid=,args= 2>/dev/null | string match -r '^ *\d+ .*(?:python|gunicorn|uwsgi|celery).*' \
        | string replace -r '^ *(\d+) (.{0,60}).*' '$1\t$2'
end

function __memattach_verb
    set -l words (commandline -opc)
    test (count $words) -gt 1; and contains -- $words[2] $argv
end

complete -c memattach -f
complete -c memattach -n __fish_use_subcommand -a dump -d 'What every thread is doing now'
complete -c memattach -n __fish_use_subcommand -a doctor -d 'What would work here, and why not'
complete -c memattach -n __fish_use_subcommand -a report -d 'The outputs again, from JSON'
complete -c memattach -s h -l help -d Help
complete -c memattach -n 'not __memattach_verb report' -s p -l pid -x -a '(__memattach_pids)' -d 'The process'
complete -c memattach -n '__memattach_verb report' -F

set -l profiling 'not __memattach_verb dump doctor report'
complete -c memattach -n $profiling -s s -l subprocesses -d 'Its child processes too'
complete -c memattach -n $profiling -s d -l duration -x -a '10s 30s 1m 5m' -d 'How long'
complete -c memattach -n $profiling -l cpu -d 'CPU time alone'
complete -c memattach -n $profiling -l memory -d 'Memory alone'
complete -c memattach -n $profiling -s g -l gil -d 'Only samples that hold the GIL'
complete -c memattach -n $profiling -s i -l idle -d 'Waiting threads too'
complete -c memattach -n 'not __memattach_verb doctor report' -s n -l native -d 'Native frames too'
complete -c memattach -n $profiling -s t -l threads -d 'Split by thread'
complete -c memattach -n $profiling -s r -l rate -x -d 'CPU samples a second'
complete -c memattach -n $profiling -l malloc-threshold -x -d 'MB an allocation sample'
complete -c memattach -n $profiling -l max-overhead -x -d 'Percent that memory may cost'
complete -c memattach -n $profiling -l blocking -d 'Stop each thread for its sample'
complete -c memattach -n $profiling -l profile-only -x -d 'Only rows with these words'
complete -c memattach -n $profiling -l profile-exclude -x -d 'No rows with these words'
complete -c memattach -n $profiling -l profile-all -d 'Charge library code itself'
complete -c memattach -n $profiling -l config -r -F -d 'Options as TOML or INI'
complete -c memattach -n $profiling -s V -l version -d Version

complete -c memattach -n '__memattach_verb dump doctor' -l json -d 'As JSON'
set -l output 'not __memattach_verb dump doctor'
complete -c memattach -n $output -l cli -d 'The table on stdout'
complete -c memattach -n $output -l html -F -d 'A self-contained page'
complete -c memattach -n $output -l json -F -d 'Everything, for scripts'
complete -c memattach -n $output -l speedscope -F -d 'For speedscope.app'
complete -c memattach -n $output -l collapsed -F -d 'Collapsed stacks'
complete -c memattach -n $output -l metric -x -a 'cpu wait allocated live peak' -d 'What stacks are weighed by'
complete -c memattach -n $output -s o -l outfile -r -F -d 'The file of the one output'
complete -c memattach -n $output -l reduced-profile -d 'Functions instead of lines'
complete -c memattach -n $output -s q -l quiet -d 'Only errors on stderr'
complete -c memattach -l no-color -d 'No colours'
