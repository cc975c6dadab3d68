from tbd.cli import main

main()
