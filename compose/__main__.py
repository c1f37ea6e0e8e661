"""`python -m compose run|stop|logs|purge`, which `make` calls (`compose.commands`)."""

import signal

if __name__ == "__main__":
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:  # not one that ignores Ctrl-C, as in `nohup`
        # While the packages load, Ctrl-C ends the process without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from compose.commands import main

    signal.signal(signal.SIGINT, interrupt)
    main()
