from video_papr.cli.report import main

if __name__ == "__main__":
    main()
